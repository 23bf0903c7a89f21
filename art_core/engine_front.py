"""The server's half of `served_engine`: the contract's routes and three of ART's own, all behind one key. No others.

| in the server                                | HTTP                         | in the client process            |
|----------------------------------------------|------------------------------|----------------------------------|
| a request's parameter is wrong               | 400 invalid_request_error    | (requests go through the gateway)|
| no or another key                            | 401 authentication_error     |                                  |
| model name not loaded (NoRouteError)         | 404 model_not_found          | NoRouteError                     |
| adapter files don't fit                      | 422, error as `to_wire`      | CheckpointCorruptError           |
| name taken, no slot (EngineError)            | 409, error as `to_wire`      | EngineError                      |
| anything else on a route of ART's            | 500, error as `to_wire`      | EngineError                      |
| a completion fails (EngineError)             | 500 server_error             |                                  |
| process dead, connection refused or cut      |                              | EngineUnavailableError           |
| time-out                                     |                              | EngineUnavailableError           |
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from art_core.errors import ArtError, CheckpointCorruptError, EngineError, NoRouteError, to_wire
from art_core.protocols.engine import LoadedAdapter

R = TypeVar("R")
Handler = Callable[[Request], Awaitable[Response]]

GONE = Response(status_code=499)
"""To a client that is not there to read it."""

_STATUS: tuple[tuple[type[ArtError], int], ...] = (
    (NoRouteError, 404),
    (CheckpointCorruptError, 422),
    (EngineError, 409),
)


class RequestError(Exception):
    """A completion request that can't be answered, with the HTTP answer that says so.

    Args:
        status: HTTP status, 4xx or 500.
        message: For people.
        param: The request's field at fault.
        code: For programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kinds = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}
        kind = kinds.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_parameter(name: str, value: object, allowed: str) -> RequestError:
    """400: names the parameter, the value seen and what is allowed."""
    seen = repr(value)
    seen = seen if len(seen) <= 200 else f"{seen[:200]}…"
    return RequestError(400, f"parameter {name!r} is {seen}; allowed: {allowed}", param=name, code="invalid_value")


class Front(Protocol):
    """What an engine's server answers with."""

    def names(self) -> Sequence[str]:
        """Every name that answers, the base's first."""
        ...

    def directories(self) -> Mapping[str, Path]:
        """Adapter name to the directory that it was loaded from."""
        ...

    def running(self) -> int:
        """How many requests are under way."""
        ...

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions.

        Raises:
            NoRouteError: Nothing of that name is served.
            RequestError: The request can't be answered.
            EngineError: The engine failed.
        """
        ...

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions; raises as `completions` does."""
        ...

    async def load(self, name: str, directory: Path) -> LoadedAdapter:
        """See `InferenceEngine.load_adapter`."""
        ...

    async def unload(self, name: str) -> None:
        """See `InferenceEngine.unload_adapter`."""
        ...

    async def score(self, name: str, sequences: list[list[int]]) -> Sequence[Sequence[float]]:
        """Logprobs of given tokens, but for each sequence's first; see `InferenceEngine.score`."""
        ...


def application(front: Front, api_key: str, lifespan: Lifespan[Starlette]) -> ASGIApp:
    """The routes; every one asks for the key.

    Args:
        front: What answers.
        api_key: What a request must show as bearer token.
        lifespan: Runs before the first request and after the last.
    """
    routes = _Routes(front)
    post, get = ["POST"], ["GET"]
    return _keyed(
        Starlette(
            routes=[
                Route("/health", routes.health, methods=get),
                Route("/v1/models", routes.models, methods=get),
                Route("/v1/completions", _answered(front.completions), methods=post),
                Route("/v1/chat/completions", _answered(front.chat_completions), methods=post),
                Route("/art/load", _told(routes.load), methods=post),
                Route("/art/unload", _told(routes.unload), methods=post),
                Route("/art/score", _told(routes.score), methods=post),
            ],
            lifespan=lifespan,
        ),
        api_key,
    )


async def while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R | None:
    """What some work gives; None where the client has gone meanwhile: the work is cancelled.

    Args:
        request: The client's.
        work: Gives anything but None.
    """
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        leaving.cancel()


class _Routes:
    """Everything but completions, as JSON."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def health(self, _: Request) -> Response:
        directories = {name: str(path) for name, path in self._front.directories().items()}
        return JSONResponse({"status": "ok", "adapters": directories, "running_requests": self._front.running()})

    async def models(self, _: Request) -> Response:
        base, *adapters = self._front.names()
        parents: dict[str, str | None] = {base: None, **dict.fromkeys(adapters, base)}
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "art", "parent": parent}
            for name, parent in parents.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def load(self, request: Request) -> Response:
        data = await request.json()
        loaded = await self._front.load(data["name"], Path(data["directory"]))
        digests = {"slot_digest": loaded.slot_digest, "expected_digest": loaded.expected_digest}
        return JSONResponse({**digests, "proof_s": loaded.proof_s})

    async def unload(self, request: Request) -> Response:
        await self._front.unload((await request.json())["name"])
        return JSONResponse({})

    async def score(self, request: Request) -> Response:
        data = await request.json()
        return JSONResponse({"logprobs": await self._front.score(data["name"], data["sequences"])})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answered(handler: Handler) -> Handler:
    """Errors of a completion, in OpenAI's shape."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except NoRouteError as error:
            failed = RequestError(404, str(error), param="model", code="model_not_found")
        except RequestError as error:
            failed = error
        except EngineError as error:
            failed = RequestError(500, str(error))
        return JSONResponse(failed.body, status_code=failed.status)

    return handle


def _told(handler: Handler) -> Handler:
    """Errors of a route of ART's, as `served_engine` rebuilds them."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - it crosses the process boundary as data and is raised there
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
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
