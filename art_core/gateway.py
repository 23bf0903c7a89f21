"""The one address that clients see: an OpenAI-compatible front that knows which step answers which name.

    GET  /health                            no key; 200 while the engine answers
    GET  /v1/models                         the default's name, every served step's, the base model's
    POST /v1/chat/completions               whole or streamed
    POST /v1/completions                    whole or streamed

A request holds its step from the first byte in to the last byte out, so that publication never cuts it: a flip moves
new requests only. A client that goes away cancels its request in the engine. While the engine is down a request is
answered 503 at once, with `Retry-After` for as long as the engine is expected back; the gateway's own address stays.
What the engine refuses (4xx) passes through as it is.

Every whole completion says on each choice which step and temperature sampled it, and carries the prompt's token ids;
in a stream the first chunk of each choice does (`art_core.completion`). How a request passes is `art_core.relay`.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Receive, Scope, Send

from art_core.config import Timeouts
from art_core.engine_client import EngineClient, Outage
from art_core.errors import EngineUnavailableError, RouteError
from art_core.protocols.engine import Endpoint
from art_core.relay import Completions, engine_down, failure
from art_core.route import RouteTable
from art_core.server import ServerThread

_START_S = 30.0


class Gateway:
    """Serves a route table's names from one engine, on loopback, in a thread of its own.

    Args:
        route: Which step answers which name; shared with the loop.
        endpoint: The started engine.
        api_key: What clients must show as bearer token; None: a random secret.
        timeouts: `connect_s` and `request_s` are used.
    """

    def __init__(
        self, route: RouteTable, endpoint: Endpoint, api_key: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        self.api_key = api_key or secrets.token_urlsafe(32)
        self._timeouts = timeouts or Timeouts()
        self._route = route
        self._engine = EngineClient(endpoint, self._timeouts)
        self._server: ServerThread | None = None

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:<port>/v1``.

        Raises:
            RouteError: The gateway is not running.
        """
        if self._server is None:
            raise RouteError("the gateway is not running; call start() first")
        return f"http://127.0.0.1:{self._server.port}/v1"

    def start(self) -> str:
        """Serve until `close`.

        Returns:
            `base_url`.

        Raises:
            RouteError: It runs already.
            RunError: The server did not come up.
        """
        if self._server is not None:
            raise RouteError(f"the gateway already runs at {self.base_url}")
        server = ServerThread(self._application(), f"art-gateway-{self._route.name}")
        server.start(_START_S)
        self._server = server
        return self.base_url

    def suspend(self, outage: Outage) -> None:
        """Refuse requests: the engine is down. Callable from any thread, as `follow` is."""
        self._engine.suspend(outage)

    def follow(self, endpoint: Endpoint, start_s: float) -> None:
        """Send requests to this engine from now on.

        Args:
            endpoint: A started engine that holds everything that the route serves.
            start_s: How long it took to come up, seconds.
        """
        self._engine.follow(endpoint, start_s)

    def close(self) -> None:
        """Stop serving; requests under way are cancelled and answered with 503. Idempotent."""
        if self._server is not None:
            for completions in self._completions.values():
                self._server.call(completions.abort)
            self._server.close()
            self._server = None

    def _application(self) -> ASGIApp:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            self._engine.close()

        views = _Views(self._route, self._engine, self._timeouts.connect_s)
        chat, text = (Completions(self._route, self._engine, chat=chat) for chat in (True, False))
        self._completions = {"/v1/chat/completions": chat, "/v1/completions": text}
        app = Starlette(
            routes=[
                Path("/health", views.health),
                Path("/v1/models", views.models),
                *(Path(path, completions, methods=["POST"]) for path, completions in self._completions.items()),
            ],
            exception_handlers={HTTPException: _no_such_path},
            lifespan=lifespan,
        )
        return _Door(app, self._completions, self.api_key)


class _Door:
    """Asks for the key on every path but /health, and shows completions the short way in.

    They are what there is much of, and every layer around one costs on each piece of its answer.
    """

    def __init__(self, app: ASGIApp, completions: Mapping[str, ASGIApp], key: str) -> None:
        self._app = app
        self._completions = completions
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                message = "the gateway's key is missing or wrong; send it as bearer token"
                app = failure(401, message, "invalid_api_key")
            elif scope["method"] == "POST":
                app = self._completions.get(scope["path"], app)
        await app(scope, receive, send)


class _Views:
    """What can be asked without generating."""

    def __init__(self, route: RouteTable, engine: EngineClient, timeout_s: float) -> None:
        self._route = route
        self._engine = engine
        self._timeout_s = timeout_s
        self._created = int(time.time())

    async def health(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._timeout_s):
                with await self._engine.send("GET", "/health") as answer:
                    await answer.read()
        except (EngineUnavailableError, TimeoutError) as error:
            return engine_down(error, self._engine.retry_after_s())
        healthy = answer.status == 200
        body = {"status": "ok" if healthy else "engine unhealthy", "models": self._route.names()}
        return JSONResponse(body, status_code=200 if healthy else 503)

    async def models(self, request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "art"} for name in self._route.names()
        ]
        return JSONResponse({"object": "list", "data": data})


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return failure(status, f"{request.method} {request.url.path} is not served here", "not_found")
