"""The routes of the engine's endpoint: the contract's, and three of ART's own. There are no others."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from art_core.errors import ArtError, CheckpointCorruptError, EngineError, NoRouteError, to_wire
from art_sglang.serve.reply import ChatStream, dump, whole_chat, whole_text
from art_sglang.serve.request import RequestError, for_sglang, parse
from art_sglang.serve.runtime import TAP
from art_sglang.serve.serving import Serving

Handler = Callable[[Request], Awaitable[Response]]
_GONE = Response(status_code=499)
"""To a client that is not there to read it."""
_ADMIN_STATUS: tuple[tuple[type[ArtError], int], ...] = (
    (NoRouteError, 404),
    (CheckpointCorruptError, 422),
    (EngineError, 409),
)


class Front:
    """The routes.

    Args:
        serving: What answers.
        template_kwargs: Defaults of the chat template's arguments.
    """

    def __init__(self, serving: Serving, template_kwargs: Mapping[str, object]) -> None:
        self._serving = serving
        self._template_kwargs = template_kwargs

    def app(self, api_key: str, lifespan: Any) -> ASGIApp:
        """The application.

        Args:
            api_key: What every route asks for.
            lifespan: Starlette's: runs before the first request and after the last.
        """
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
        return _keyed(Starlette(routes=routes, lifespan=lifespan), api_key)

    async def health(self, _: Request) -> Response:
        """State: adapter names with their directories, and how much runs."""
        running = self._serving.table.running
        return JSONResponse(
            {"status": "ok", "adapters": self._serving.directories(), "running_requests": running},
        )

    async def models(self, _: Request) -> Response:
        """The names that answer."""
        base = self._serving.config.base_name
        parents = {base: None, **dict.fromkeys(self._serving.table.adapters(), base)}
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "art", "parent": parent}
            for name, parent in parents.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = parse(await request.body(), self._serving.config.vocab_size)
        with ExitStack() as held:
            key = held.enter_context(self._serving.table.using(body["model"]))
            asked = _validated(CompletionRequest, for_sglang(body, key, None))
            answer = await _while_connected(request, self._serving.runtime.text.handle_request(asked, request))
            if isinstance(answer, StreamingResponse):
                return _Stream(answer.body_iterator, str.encode, held.pop_all())
            return answer if isinstance(answer, Response) else _json(whole_text(answer.model_dump()))

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
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
            answer = await _while_connected(request, chat.handle_request(asked, request))
            if isinstance(answer, StreamingResponse):
                return _Stream(answer.body_iterator, complete, held.pop_all())
            return answer if isinstance(answer, Response) else _json(whole_chat(answer.model_dump()))

    async def load(self, request: Request) -> Response:
        """Load an adapter: {name, directory} -> {slot_digest, expected_digest, proof_s}."""
        data = await request.json()
        loaded = await self._serving.load(data["name"], Path(data["directory"]))
        digests = {"slot_digest": loaded.slot_digest, "expected_digest": loaded.expected_digest}
        return JSONResponse({**digests, "proof_s": loaded.proof_s})

    async def unload(self, request: Request) -> Response:
        """Forget an adapter: {name}."""
        await self._serving.unload_name((await request.json())["name"])
        return JSONResponse({})

    async def score(self, request: Request) -> Response:
        """Score tokens: {name, sequences} -> {logprobs}, each without the first token's."""
        data = await request.json()
        return JSONResponse({"logprobs": await self._serving.score(data["name"], data["sequences"])})


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


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The answer; SGLang aborts what is cancelled here, because the client has gone."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else _GONE
    finally:
        answering.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _validated(kind: Any, body: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        seen = repr(first["input"])
        raise RequestError(400, f"parameter {name!r} is {seen[:200]}: {first['msg']}", param=name) from error


def _json(data: dict[str, Any]) -> Response:
    return Response(dump(data), media_type="application/json")


def _answered(handler: Handler) -> Handler:
    """Errors of a completion route, in OpenAI's shape."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except NoRouteError as error:
            failed = RequestError(404, str(error), param="model", code="model_not_found")
        except RequestError as error:
            failed = error
        return JSONResponse(failed.body, status_code=failed.status)

    return handle


def _administered(handler: Handler) -> Handler:
    """Errors of an admin route, as the engine's client side rebuilds them."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - it crosses the process boundary as data and is raised there
            status = next((status for kind, status in _ADMIN_STATUS if isinstance(error, kind)), 500)
            return JSONResponse({"error": to_wire(error)}, status_code=status)

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
