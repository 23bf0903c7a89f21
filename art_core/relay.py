"""One completion's way through the gateway: acquire a step, ask the engine, mark the answer, let the step go.

A request holds its step from before the engine sees it until its last byte is sent. A client that goes away cancels
its request in the engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from art_core.completion import Served, StreamMarker, choice_count, dump, mark, with_defaults
from art_core.engine_client import Answer, EngineClient
from art_core.errors import EngineUnavailableError, NoRouteError
from art_core.route import Lease, RouteTable


@dataclass(frozen=True)
class _Call:
    """One request on its way."""

    request: dict[str, Any]
    served: Served


class Completions:
    """One of the two completion paths, as an ASGI application.

    Args:
        route: Which step answers which name.
        engine: How the engine is reached.
        chat: Whether it is chat completions.
    """

    def __init__(self, route: RouteTable, engine: EngineClient, *, chat: bool) -> None:
        self._route = route
        self._engine = engine
        self._chat = chat
        self._running: set[asyncio.Task[None]] = set()

    def abort(self) -> None:
        """Cancel every request under way. Called on the gateway's event loop."""
        for task in self._running:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = await _body(receive)
        if body is None:
            return
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError) as error:
            await failure(400, f"the body is not JSON: {error}", "invalid_json")(scope, receive, send)
            return
        if not isinstance(payload, dict) or not isinstance(payload.get("model"), str):
            message = "the body must be an object with a string 'model'"
            await failure(400, message, "invalid_request", "model")(scope, receive, send)
            return
        try:
            lease = self._route.acquire(payload["model"])
        except NoRouteError as error:
            await failure(404, str(error), "model_not_found", "model")(scope, receive, send)
            return
        with lease:
            path, call = scope["path"], self._call(payload, lease)
            await self._while_connected(receive, self._answer(path, call, send))

    async def _while_connected(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Run the work, and cancel it when the client goes away or the gateway closes."""
        task, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
        self._running.add(task)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
            self._running.discard(task)
        if not task.cancelled():
            task.result()

    def _call(self, payload: dict[str, Any], lease: Lease) -> _Call:
        request = with_defaults(payload, chat=self._chat)
        request["model"] = lease.adapter
        return _Call(request, Served(lease.adapter, lease.step, request["temperature"]))

    async def _answer(self, path: str, call: _Call, send: Send) -> None:
        try:
            answer = await self._engine.send("POST", path, dump(call.request))
        except _ENDS as error:
            await _send(send, self._down(error))
            return
        with answer:
            if answer.status == 200 and call.request.get("stream"):
                await self._relay(answer, StreamMarker(call.served, choice_count(call.request)), send)
            else:
                await _send(send, await self._whole(answer, call.served))

    async def _whole(self, answer: Answer, served: Served) -> Response:
        try:
            body = await answer.read()
        except _ENDS as error:
            return self._down(error)
        if answer.status == 200:
            completion = json.loads(body)
            mark(completion, served)
            body = dump(completion)
        return Response(body, answer.status, headers={"content-type": answer.content_type.decode("latin-1")})

    async def _relay(self, answer: Answer, marker: StreamMarker, send: Send) -> None:
        """Pass a stream on as it comes; one that breaks off ends with an error event, never as if it were whole."""
        headers = [(b"content-type", answer.content_type), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for data in answer.body():
                if marked := marker.feed(data):
                    await send(_chunk(marked))
            last = marker.end()
        except _ENDS as error:
            last = b"data: " + bytes(self._down(error).body) + b"\n\n"
        await send(_chunk(last, more=False))

    def _down(self, error: BaseException) -> Response:
        return engine_down(error, self._engine.retry_after_s())


# cancelled: the client has gone, and is told nothing; or the gateway closes, and the client is told so
_ENDS = (EngineUnavailableError, asyncio.CancelledError)


def _chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _send(send: Send, response: Response) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send(_chunk(bytes(response.body), more=False))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes | None:
    """A request's whole body; None: the client has gone."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
    return None


def engine_down(error: BaseException, retry_after_s: int | None) -> Response:
    """503, at once: there is no engine, or its socket is closed or silent, or the gateway is closing.

    Args:
        error: What came of speaking to the engine.
        retry_after_s: When asking again may help; None: it will not.
    """
    if isinstance(error, asyncio.CancelledError):
        message, retry_after_s = "the gateway is closing; the answer is not whole", 1
    else:
        message = str(error)
    body = _error(message, "server_error", "engine_unavailable")
    # the second is OpenAI's way to stop their clients, who else ask again at once
    headers = {"x-should-retry": "false"} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return JSONResponse(body, status_code=503, headers=headers)


def failure(status: int, message: str, code: str, param: str | None = None) -> Response:
    """A refusal in the shape that OpenAI clients parse.

    Args:
        status: HTTP status, 4xx.
        message: For people.
        code: For programs.
        param: The request's field at fault.
    """
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(_error(message, kind, code, param), status_code=status)


def _error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
