"""What stands before vLLM's own routes, in the server's process: the key, the names, and who is inside.

An ASGI middleware, given to the stock server by its own flag ``--middleware``. It is there because the server's own
``--api-key`` guards ``/v1`` and leaves ``/collective_rpc``, ``/sleep`` or ``/pause`` open; because a request that names
no model is answered by the base; because the server forgets an unloaded name while requests still use its weights; and
because it passes tools over in silence where the chat template does not show them.

A load's answer carries the adapter's number as a header.

    GET /art/state      {"alive", "adapters": {name: {"id", "directory"}}, "running": {id: requests}}; id 0 is the base
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from art_core.process import announce

STATE = "/art/state"
NUMBER = "art-adapter"
"""Header of a load's answer: vLLM's number of the adapter, once it holds it."""
_UNLOAD = "/v1/unload_lora_adapter"
_CHANGES = {"/v1/load_lora_adapter", _UNLOAD}
_COMPLETIONS = {"/v1/completions", "/v1/chat/completions"}
_BASE = 0
_PARAM = {400: "tools", 404: "model"}
"""What is wrong with a request that is refused with this status."""

_settings: dict[str, str] = {}


def configure(api_key: str) -> None:
    """Set what the door of this process asks for: the server makes it, and hands it nothing.

    Args:
        api_key: What a request must carry as bearer token.
    """
    _settings["authorization"] = f"Bearer {api_key}"


class Door:
    """The middleware; one a process.

    Args:
        app: The server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._authorization = _settings["authorization"].encode()
        self._running: Counter[int] = Counter()
        """Adapter id to the requests that are inside."""
        self._leaving: dict[str, int] = {}
        """Name to adapter id, of those unloaded while requests are inside. vLLM looks a request's name up some time
        after it came in, so it forgets the name with the last of them; for everybody else the name is gone at once."""
        self._tools_refused: str | None = None
        """Why a request with tools can't be served, known once the server is up; None: it can."""
        self._changing = asyncio.Lock()
        """One load or unload at a time, in the order in which they came: an unload after a load that was given up must
        find what that did."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or turn it away."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._announcing(scope, send))
        elif not self._has_key(scope):
            await _refuse(401, "the key is missing or wrong; send it as bearer token", scope, receive, send)
        elif scope["path"] == STATE:
            await JSONResponse(self._state(scope["app"].state))(scope, receive, send)
        elif scope["path"] in _COMPLETIONS and scope["method"] == "POST":
            await self._complete(scope, receive, send)
        elif scope["path"] in _CHANGES:
            async with self._changing:
                await self._change(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._authorization)

    async def _change(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Load or unload; an unload waits for the requests that are inside, and its caller does not."""
        body = await _body(receive)
        if body is None:
            return
        models, name = scope["app"].state.openai_serving_models, _field(body, "lora_name")
        if scope["path"] == _UNLOAD:
            held = models.lora_requests.get(name)
            if held is not None and self._running[held.lora_int_id]:
                self._leaving[name] = held.lora_int_id
                await JSONResponse({"leaving": name})(scope, receive, send)
                return
        elif self._leaving.pop(name, None) is not None:
            del models.lora_requests[name]
        await self._app(scope, _replaying(body, receive), _numbering(models.lora_requests, name, send))

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a completion under the adapter that its name stands for now."""
        body = await _body(receive)
        if body is None:
            return
        models, data = scope["app"].state.openai_serving_models, _object(body)
        if self._tools_refused and data.get("tools") and data.get("tool_choice") != "none":
            await _refuse(400, self._tools_refused, scope, receive, send)
            return
        name = _field(body, "model")
        if models.is_base_model(name):
            adapter = _BASE
        elif name in models.lora_requests and name not in self._leaving:
            adapter = models.lora_requests[name].lora_int_id
        else:
            await _refuse(404, f"the model {name!r} is not served", scope, receive, send)
            return
        self._running[adapter] += 1
        try:
            await self._app(scope, _replaying(body, receive), send)
        finally:
            self._running[adapter] -= 1
            if not self._running[adapter] and self._leaving.get(name) == adapter:
                del self._leaving[name], models.lora_requests[name]

    def _announcing(self, scope: Scope, send: Send) -> Send:
        """Tell the owner, once the model is loaded and the routes stand, what is served."""

        async def tell(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                state = scope["app"].state
                model = state.engine_client.model_config
                template = state.args.chat_template or state.engine_client.renderer.get_tokenizer().chat_template
                self._tools_refused = tools_refusal(template, state.args.tool_call_parser)
                announce(
                    {
                        "directory": model.model,
                        "vocab_size": model.get_vocab_size(),
                        "context_tokens": model.max_model_len,
                        "dtype": str(model.dtype).removeprefix("torch."),
                        "chat_template": template,
                    }
                )

        return tell

    def _state(self, state: Any) -> Mapping[str, Any]:
        adapters = state.openai_serving_models.lora_requests
        return {
            "alive": not state.engine_client.errored,
            "adapters": {
                name: {"id": each.lora_int_id, "directory": each.lora_path}
                for name, each in adapters.items()
                if name not in self._leaving
            },
            "running": {str(adapter): count for adapter, count in self._running.items() if count},
        }


def tools_refusal(template: object, parser: str | None) -> str | None:
    """Why requests with tools can't be served; None where they can.

    Args:
        template: The chat template; several by name, where a model has so many, are left to vLLM.
        parser: vLLM's parser of tool calls.
    """
    if parser is None:
        return "tools are not served: option 'tool_call_parser' is None; name the one of vLLM's that fits the model"
    if not isinstance(template, str):
        return None
    if not re.search(r"\btools\b", template):
        return "tools are not served: the chat template does not show them to the model; give one that does"
    if parser == "hermes" and "<tool_call>" not in template:
        return (
            "tools are not served: the chat template does not write calls as 'hermes' reads them; name by option "
            "'tool_call_parser' the one of vLLM's that fits the model"
        )
    return None


def _numbering(held: Mapping[str, Any], name: str, send: Send) -> Send:
    """Say in an answer which number a name has, where it has one."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start" and name in held:
            number = str(held[name].lora_int_id).encode()
            message = {**message, "headers": [*message["headers"], (NUMBER.encode(), number)]}
        await send(message)

    return tell


async def _body(receive: Receive) -> bytes | None:
    """The request's body; None where the client has gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give the body, which was read already, and then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _object(body: bytes) -> dict[str, Any]:
    """A request's fields; none where it is no JSON object, which the server says itself."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _field(body: bytes, key: str) -> str:
    """What a request names, e.g. its model; empty where it names nothing, which no model is called."""
    name = _object(body).get(key)
    return name if isinstance(name, str) else ""


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": _PARAM.get(status), "code": status}
    await JSONResponse({"error": error}, status_code=status)(scope, receive, send)
