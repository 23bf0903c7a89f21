"""The engine's process: OpenAI-style HTTP in front of the model thread, and routes of ART's own.

Run as ``python -m art_torch.serve.server <socket fd> <settings fd>`` by `art_torch.engine`, which bound the socket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from art_core.engine_front import GONE, RequestError, application, while_connected
from art_core.errors import ArtError, EngineError, to_wire
from art_core.process import announce, attach_owner
from art_core.protocols.engine import LoadedAdapter
from art_torch.options import TorchEngineOptions
from art_torch.serve.chat import ChatTemplate
from art_torch.serve.reply import Choice, Reply, TokenText
from art_torch.serve.request import ChatBody, Job, TextBody, chat_job, parse, text_job
from art_torch.serve.serving import Run, Serving, ServingConfig


class TorchFront:
    """What the routes answer with; see `art_core.engine_front.Front`."""

    def __init__(self, serving: Serving, template: ChatTemplate) -> None:
        self._serving = serving
        self._template = template
        self._texts = TokenText(serving.base.tokenizer)
        self._loading = asyncio.Lock()
        """Loads and unloads happen one after the other: an unload after a cancelled load finds it done."""

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Starlette's: the model thread runs as long as requests may come."""
        self._serving.thread.start(asyncio.get_running_loop())
        yield
        self._serving.thread.stop()

    def names(self) -> list[str]:
        """See `Front.names`."""
        return self._serving.adapters.names()

    def directories(self) -> dict[str, Path]:
        """See `Front.directories`."""
        return self._serving.adapters.directories()

    def running(self) -> int:
        """See `Front.running`."""
        return self._serving.thread.running

    async def completions(self, request: Request) -> Response:
        """See `Front.completions`."""
        body = parse(TextBody, await request.body())
        return await self._complete(request, text_job(body, self._serving.window, self._tokenize))

    async def chat_completions(self, request: Request) -> Response:
        """See `Front.chat_completions`."""
        body = parse(ChatBody, await request.body())
        return await self._complete(request, chat_job(body, self._serving.window, self._template))

    async def load(self, name: str, directory: Path) -> LoadedAdapter:
        """See `Front.load`."""
        async with self._loading:
            return await asyncio.to_thread(self._serving.adapters.load, name, directory)

    async def unload(self, name: str) -> None:
        """See `Front.unload`."""
        async with self._loading:
            self._serving.adapters.unload(name)

    async def score(self, name: str, sequences: list[list[int]]) -> list[list[float]]:
        """See `Front.score`."""
        window = self._serving.window
        for tokens in sequences:
            if not 1 <= len(tokens) <= window.context_tokens or not all(0 <= t < window.vocab_size for t in tokens):
                raise EngineError(
                    f"a sequence to score has {len(tokens)} tokens or token ids outside the vocabulary; "
                    f"allowed: 1 to {window.context_tokens} tokens, each from 0 to {window.vocab_size - 1}"
                )
        scored = await self._serving.score(name, sequences)
        return [[token.logprob for token in tokens] for tokens in scored]

    def _tokenize(self, text: str) -> list[int]:
        return list(self._serving.base.tokenizer(text)["input_ids"])

    async def _complete(self, request: Request, job: Job) -> Response:
        run, reply = self._serving.run(job), Reply(job, self._texts)
        if job.stream:
            return _EventStream(run, _events(run, reply, job))
        with run:
            choices = await while_connected(request, _collect(run))
            return GONE if choices is None else JSONResponse(reply.whole(choices))


async def _collect(run: Run) -> list[Choice]:
    choices = [Choice() for _ in run.sequences]
    async for update in run.updates():
        choices[update.sequence.choice].add(update)
    for sequence, choice in zip(run.sequences, choices, strict=True):
        choice.prompt_scored = sequence.prompt_scored
    return choices


class _EventStream(StreamingResponse):
    """A stream whose sequences are dropped when it ends, also where the client left before its first event."""

    def __init__(self, run: Run, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._run:
            await super().__call__(scope, receive, send)


async def _events(run: Run, reply: Reply, job: Job) -> AsyncIterator[bytes]:
    for chunk in reply.opening():
        yield _event(chunk)
    tokens = 0
    try:
        async for update in run.updates():
            tokens += len(update.tokens)
            yield _event(reply.chunk(update))
    except EngineError as error:
        yield _event(RequestError(500, str(error)).body)
        return
    if job.include_usage:
        yield _event(reply.last(tokens))
    yield b"data: [DONE]\n\n"


def _event(data: object) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def main() -> None:
    """Serve until the owner stops or ends."""
    attach_owner()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The model thread asks for the interpreter after every tensor operation; waiting 5 ms for it would add up.
    sys.setswitchinterval(0.0005)
    socket_fd, settings_fd = (int(argument) for argument in sys.argv[1:])
    with os.fdopen(settings_fd, "rb") as file:
        settings = json.load(file)
    options = TorchEngineOptions(**settings.pop("options"))
    api_key, template_kwargs = settings.pop("api_key"), settings.pop("chat_template_kwargs")
    try:
        serving = Serving.load(ServingConfig(options=options, **settings))
        template = ChatTemplate(serving.base.tokenizer, template_kwargs)
    except ArtError as error:
        announce({"error": to_wire(error)})
        raise SystemExit(1) from error
    front = TorchFront(serving, template)
    config = uvicorn.Config(
        application(front, api_key, front.lifespan),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,  # Above the gateway's idle limit, so that none is closed under a request being sent.
        timeout_graceful_shutdown=1,
    )
    with socket.socket(fileno=socket_fd) as listener:
        # The socket listens already: a connection made from here on waits for the server.
        announce({"model": _model_info(serving)})
        uvicorn.Server(config).run(sockets=[listener])


def _model_info(serving: Serving) -> dict[str, Any]:
    info = serving.base.info
    return {
        "identity": info.identity.model_dump(),
        "vocab_size": info.vocab_size,
        "context_tokens": serving.window.context_tokens,
        "chat_template": info.chat_template,
        "dtype": info.dtype,
    }


if __name__ == "__main__":
    main()
