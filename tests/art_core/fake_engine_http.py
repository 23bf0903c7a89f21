"""An engine's HTTP side without a model: a real ASGI server on a real socket that answers by script.

What it does not prove: that an engine's own answers have this shape, or how long they take. It does have what the
gateway must cope with: it answers only for adapters that are loaded at that instant, streams as slowly as it is told,
notices when its client goes away, breaks off, refuses, and says the name of the adapter it was asked for.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from art_core.base_model import BaseIdentity, ModelInfo
from art_core.protocols.engine import Endpoint
from art_core.server import ServerThread
from art_core.testing.condition import LONGEST_S

BASE = "base/model"
KEY = "the-engine's-own-key"


def event(data: object) -> bytes:
    """One server-sent event, with the spaces that some engines write."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


class FakeEngine:
    """Serves until closed. The request's `user` field says how to answer: see `_answer`."""

    def __init__(self, adapters: Iterable[str] = ()) -> None:
        self.adapters = set(adapters)
        self.requests: list[dict[str, Any]] = []
        self.arrived = threading.Semaphore(0)
        self.client_left = threading.Event()
        self._server = ServerThread(
            Starlette(
                routes=[
                    Route("/health", lambda request: Response(status_code=200)),
                    Route("/v1/chat/completions", self._answer, methods=["POST"]),
                    Route("/v1/completions", self._answer, methods=["POST"]),
                ],
                lifespan=self._lifespan,
            ),
            "fake-engine",
        )
        self._server.start(LONGEST_S)
        model = ModelInfo(BaseIdentity(name=BASE, digest="d"), 100, 100, None, "float32")
        self.endpoint = Endpoint(f"http://127.0.0.1:{self._server.port}", KEY, model, 4)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop, self._gate = asyncio.get_running_loop(), asyncio.Event()
        yield

    def open_gate(self) -> None:
        """Let those go on that wait in the middle of their answer."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def close(self) -> None:
        """Stop answering; idempotent."""
        if not self._loop.is_closed():
            self.open_gate()
        self._server.close()

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append({**body, "path": request.url.path, "key": request.headers["authorization"]})
        self.arrived.release()
        if body["model"] not in {BASE, *self.adapters}:
            return JSONResponse({"error": {"message": f"{body['model']} is not loaded"}}, 404)
        if body.get("user") == "refuse":
            return Response(b'{"error":  "verbatim"}', 422, media_type="application/json")
        if body.get("stream"):
            return _Stream(self, body)
        if body.get("user") == "wait":
            await self._left_or_gate(request)
        return JSONResponse(completion(body, chat="messages" in body))

    async def _left_or_gate(self, request: Request) -> None:
        gate = asyncio.create_task(self._gate.wait())
        left = asyncio.create_task(request.receive())
        done, pending = await asyncio.wait({gate, left}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if left in done:
            self.client_left.set()


class _Stream(Response):
    """Three chunks per choice; `user`: "wait" before the second, "break" off there."""

    def __init__(self, engine: FakeEngine, body: dict[str, Any]) -> None:
        super().__init__(media_type="text/event-stream")
        self._engine, self._request = engine, body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers[1:]})
        for number, chunk in enumerate(chunks(self._request)):
            if number == 1 and self._request.get("user") == "wait":
                await self._engine._left_or_gate(Request(scope, receive))
            if number == 1 and self._request.get("user") == "break":
                raise ConnectionAbortedError("the engine dies in the middle of a stream")
            data = event(chunk)
            # an engine's events need not arrive whole
            await send({"type": "http.response.body", "body": data[:25], "more_body": True})
            await send({"type": "http.response.body", "body": data[25:], "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def completion(body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """A whole answer, whose text is the name that the engine was asked for."""
    text = {"message": {"role": "assistant", "content": body["model"]}} if chat else {"text": body["model"]}
    choices = [
        {"index": n, **text, "finish_reason": "stop", "logprobs": None, "token_ids": [5, 6]}
        for n in range(body.get("n", 1))
    ]
    kind = "chat.completion" if chat else "text_completion"
    prompt = {"prompt_token_ids": [1, 2, 3]} if body.get("return_token_ids") else {}
    return {"id": "c", "object": kind, "created": 0, "model": "engine's own", "choices": choices, **prompt}


def chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A stream whose text holds what a careless rewrite of `model` would change."""
    top = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "engine's own"}
    texts = [body["model"], ' {"model": "mine"}, "model": "x" \\', "!"]
    return [
        {**top, "choices": [{"index": n, "delta": {"content": text}, "finish_reason": None}]}
        for text in texts
        for n in range(body.get("n", 1))
    ]
