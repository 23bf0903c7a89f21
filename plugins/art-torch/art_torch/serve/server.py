"""The engine's process: OpenAI-style HTTP in front of the model thread, and routes of ART's own.

Run as ``python -m art_torch.serve.server <socket fd> <settings fd>`` by `art_torch.engine`, which bound the socket.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from art_core.errors import ArtError, EngineError, NoRouteError, to_wire
from art_core.process import announce, attach_owner
from art_torch.options import TorchEngineOptions
from art_torch.serve.chat import ChatTemplate
from art_torch.serve.failure import RequestError, admin_body, admin_status, unknown_model
from art_torch.serve.reply import Choice, Reply, TokenText
from art_torch.serve.request import ChatBody, Job, TextBody, chat_job, parse, text_job
from art_torch.serve.serving import Run, Serving, ServingConfig

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The routes."""

    def __init__(self, serving: Serving, template: ChatTemplate) -> None:
        self._serving = serving
        self._template = template
        self._texts = TokenText(serving.base.tokenizer)
        self._loading = asyncio.Lock()
        """Loads and unloads happen one after the other: an unload after a cancelled load finds it done."""

    def app(self, api_key: str) -> ASGIApp:
        """The application; every route asks for the key."""
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/health", self.health, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/completions", _answered(self.completions), methods=post),
            Route("/v1/chat/completions", _answered(self.chat_completions), methods=post),
            Route("/art/load", _administered(self.load), methods=post),
            Route("/art/unload", _administered(self.unload), methods=post),
            Route("/art/score", _administered(self.score), methods=post),
        ]

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self._serving.thread.start(asyncio.get_running_loop())
            yield
            self._serving.thread.stop()

        return _keyed(Starlette(routes=routes, lifespan=lifespan), api_key)

    async def health(self, _: Request) -> Response:
        """State: adapter names with their directories, and how much runs."""
        directories = self._serving.adapters.directories()
        return JSONResponse(
            {
                "status": "ok",
                "adapters": {name: str(path) for name, path in directories.items()},
                "running_requests": self._serving.thread.running,
            }
        )

    async def models(self, _: Request) -> Response:
        """The names that answer."""
        names = self._serving.adapters.names()
        data = [
            {"id": n, "object": "model", "created": 0, "owned_by": "art", "parent": None if n == names[0] else names[0]}
            for n in names
        ]
        return JSONResponse({"object": "list", "data": data})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = parse(TextBody, await request.body())
        return await self._complete(request, text_job(body, self._serving.window, self._tokenize))

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = parse(ChatBody, await request.body())
        return await self._complete(request, chat_job(body, self._serving.window, self._template))

    async def load(self, request: Request) -> Response:
        """Load an adapter: {name, directory} -> {slot_digest, expected_digest, proof_s}."""
        data = await request.json()
        async with self._loading:
            loaded = await asyncio.to_thread(self._serving.adapters.load, data["name"], Path(data["directory"]))
        digests = {"slot_digest": loaded.slot_digest, "expected_digest": loaded.expected_digest}
        return JSONResponse({**digests, "proof_s": loaded.proof_s})

    async def unload(self, request: Request) -> Response:
        """Forget an adapter: {name}."""
        data = await request.json()
        async with self._loading:
            self._serving.adapters.unload(data["name"])
        return JSONResponse({})

    async def score(self, request: Request) -> Response:
        """Score tokens: {name, sequences} -> {logprobs}, each without the first token's."""
        data = await request.json()
        window, prompts = self._serving.window, data["sequences"]
        for prompt in prompts:
            if not 1 <= len(prompt) <= window.context_tokens or not all(0 <= t < window.vocab_size for t in prompt):
                raise EngineError(
                    f"a sequence to score has {len(prompt)} tokens or token ids outside the vocabulary; "
                    f"allowed: 1 to {window.context_tokens} tokens, each from 0 to {window.vocab_size - 1}"
                )
        scored = await self._serving.score(data["name"], prompts)
        return JSONResponse({"logprobs": [[token.logprob for token in tokens] for tokens in scored]})

    def _tokenize(self, text: str) -> list[int]:
        return list(self._serving.base.tokenizer(text)["input_ids"])

    async def _complete(self, request: Request, job: Job) -> Response:
        run, reply = self._serving.run(job), Reply(job, self._texts)
        if job.stream:
            return _EventStream(run, _events(run, reply, job))
        with run:
            collecting = asyncio.ensure_future(_collect(run))
            leaving = asyncio.ensure_future(_disconnected(request))
            try:
                await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not collecting.done():
                    return Response(status_code=499)  # Nobody is there to read it.
                return JSONResponse(reply.whole(collecting.result()))
            finally:
                collecting.cancel()
                leaving.cancel()


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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answered(handler: Handler) -> Handler:
    """Errors of a completion route, in OpenAI's shape."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except NoRouteError as error:
            failed = unknown_model(error)
        except RequestError as error:
            failed = error
        except EngineError as error:
            failed = RequestError(500, str(error))
        return JSONResponse(failed.body, status_code=failed.status)

    return handle


def _administered(handler: Handler) -> Handler:
    """Errors of an admin route, as the engine's client side rebuilds them."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - it crosses the process boundary as data and is raised there
            return JSONResponse(admin_body(error), status_code=admin_status(error))

    return handle


def _keyed(app: ASGIApp, api_key: str) -> ASGIApp:
    expected = f"Bearer {api_key}".encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, expected):
                failed = RequestError(401, "the key is missing or wrong; send 'Authorization: Bearer <key>'")
                await JSONResponse(failed.body, status_code=401)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guard


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
    config = uvicorn.Config(
        Api(serving, template).app(api_key),
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
