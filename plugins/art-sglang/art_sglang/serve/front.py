"""What SGLang answers with on the routes of `art_core.engine_front`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from art_core.engine_front import GONE, RequestError, while_connected
from art_core.protocols.engine import LoadedAdapter
from art_sglang.serve.reply import ChatStream, dump, whole_chat, whole_text
from art_sglang.serve.request import for_sglang, parse
from art_sglang.serve.runtime import TAP
from art_sglang.serve.serving import Serving

_JSON = "application/json"


class SglangFront:
    """What the routes answer with; see `art_core.engine_front.Front`.

    Args:
        serving: What answers.
        template_kwargs: Defaults of the chat template's arguments.
    """

    def __init__(self, serving: Serving, template_kwargs: Mapping[str, object]) -> None:
        self._serving = serving
        self._template_kwargs = template_kwargs

    def names(self) -> list[str]:
        """See `Front.names`."""
        return [self._serving.config.base_name, *self._serving.table.adapters()]

    def directories(self) -> dict[str, Path]:
        """See `Front.directories`."""
        return self._serving.directories()

    def running(self) -> int:
        """See `Front.running`."""
        return self._serving.table.running

    async def completions(self, request: Request) -> Response:
        """See `Front.completions`."""
        body = parse(await request.body(), self._serving.config.vocab_size)
        with ExitStack() as held:
            key = held.enter_context(self._serving.table.using(body["model"]))
            asked = _validated(CompletionRequest, for_sglang(body, key, None))
            answer = await while_connected(request, self._serving.runtime.text.handle_request(asked, request))
            if isinstance(answer, StreamingResponse):
                return _Stream(answer.body_iterator, str.encode, held.pop_all())
            return _response(answer, whole_text)

    async def chat_completions(self, request: Request) -> Response:
        """See `Front.chat_completions`."""
        body = parse(await request.body(), self._serving.config.vocab_size)
        chat = self._serving.runtime.chat
        if body.get("tools") and body.get("tool_choice") != "none" and chat.tool_call_parser is None:
            raise RequestError(
                400,
                "parameter 'tools' is not served: the chat template speaks for no parser of tool calls, and option "
                "'tool_call_parser' names none; name one that fits the model, or send no tools",
                param="tools",
            )
        with ExitStack() as held:
            key = held.enter_context(self._serving.table.using(body["model"]))
            asked = _validated(ChatCompletionRequest, for_sglang(body, key, self._template_kwargs))
            complete: Callable[[str], bytes] = str.encode
            if asked.stream and body.get("return_token_ids"):
                stream = ChatStream(chat.openai_logprobs if asked.logprobs else None)
                request.scope[TAP] = stream.tap
                complete = stream.event
            answer = await while_connected(request, chat.handle_request(asked, request))
            if isinstance(answer, StreamingResponse):
                return _Stream(answer.body_iterator, complete, held.pop_all())
            return _response(answer, whole_chat)

    async def load(self, name: str, directory: Path) -> LoadedAdapter:
        """See `Front.load`."""
        return await self._serving.load(name, directory)

    async def unload(self, name: str) -> None:
        """See `Front.unload`."""
        await self._serving.unload_name(name)

    async def score(self, name: str, sequences: list[list[int]]) -> list[list[float]]:
        """See `Front.score`."""
        return await self._serving.score(name, sequences)


class _Stream(StreamingResponse):
    """SGLang's stream, each event completed; what it holds is let go when it ends, however it does."""

    def __init__(self, events: Any, complete: Callable[[str], bytes], held: ExitStack) -> None:
        super().__init__(_completed(events, complete), media_type="text/event-stream")
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)


async def _completed(events: Any, complete: Callable[[str], bytes]) -> AsyncGenerator[bytes, None]:
    async for event in events:
        yield complete(event)


def _validated(kind: Any, body: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        seen = repr(first["input"])
        raise RequestError(400, f"parameter {name!r} is {seen[:200]}: {first['msg']}", param=name) from error


def _response(answer: Any, whole: Callable[[dict[str, Any]], dict[str, Any]]) -> Response:
    """SGLang's answer, its own refusals as they are; None: the client has gone, and SGLang has aborted the request."""
    if answer is None:
        return GONE
    return answer if isinstance(answer, Response) else Response(dump(whole(answer.model_dump())), media_type=_JSON)
