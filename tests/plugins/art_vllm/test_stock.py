"""What a server of somebody else's is refused for. Its answers here are by script, and shaped as vLLM 0.32's were seen.

What that does not prove: that a real one answers so; `test_attach` has one, started rightly.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from art_vllm.argument import EXTENSION
from art_vllm.options import Runtime, VllmOptions
from art_vllm.stock import inspect, require_vocabulary
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import ConfigError
from art_core.protocols.engine import EngineSpec
from art_core.server import ServerThread

LORA = {"max_lora_rank": 8, "max_loras": 4, "target_modules": ["q_proj"]}
LOGITS = [3.0, 2.0, 1.0, 0.0]


@dataclass
class Script:
    """How the server was started."""

    raw: bool = False
    cut: bool = False
    routes: bool = True
    html: bool = False
    version: str = "0.32.0"
    lora: dict[str, Any] | None = field(default_factory=lambda: dict(LORA))
    extension: str | None = EXTENSION
    development: bool = True

    def answer(self, path: str, body: dict[str, Any]) -> Response:
        if self.html:
            return HTMLResponse("<html>It works</html>")
        if path == "/v1/load_lora_adapter":
            return Response(status_code=405 if self.routes else 404)
        if path == "/server_info":
            config = {"lora_config": self.lora, "parallel_config": {"worker_extension_cls": self.extension}}
            return JSONResponse({"vllm_config": config}) if self.development else Response(status_code=404)
        if path == "/version":
            return JSONResponse({"version": self.version})
        if path == "/v1/models":
            return JSONResponse({"data": [{"id": "base", "root": "/m", "max_model_len": 512, "parent": None}]})
        return self.complete(body)

    def complete(self, body: dict[str, Any]) -> Response:
        if max(body["prompt"]) >= len(LOGITS):
            return JSONResponse({"error": {"message": f"Token id {body['prompt'][0]} is out of vocabulary"}}, 400)
        temperature = 1.0 if self.raw else body["temperature"]
        logits = [each / temperature for each in LOGITS]
        kept = logits[:2] if self.cut and "top_k" not in body else logits
        total = math.log(sum(map(math.exp, kept)))
        top = {f"token_id:{token}": each - total for token, each in enumerate(kept)}
        return JSONResponse({"choices": [{"logprobs": {"top_logprobs": [top]}}]})


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[EngineServer]:
    async def answer(request: Request) -> Response:
        return script.answer(request.url.path, await request.json() if request.method == "POST" else {})

    thread = ServerThread(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]), "scripted-vllm")
    thread.start(10)
    try:
        yield EngineServer("vllm", f"http://127.0.0.1:{thread.port}", {}, None, Timeouts())
    finally:
        thread.close()


def options(**runtime: Any) -> VllmOptions:
    return VllmOptions(runtime=Runtime(mode="external", server_url="http://there", **runtime))


SPEC = EngineSpec("/m", "base", 8, Path("/log"))
EVERYTHING = {"worker_extension": True, "score": True}


@pytest.mark.parametrize(
    ("script", "runtime", "says"),
    [
        (Script(html=True), {}, "does not list its models as vLLM does: '<html>It works"),
        (Script(routes=False), {}, "no route to load adapters with; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (Script(raw=True), {}, "same logprobs at every temperature.*--logprobs-mode processed_logprobs"),
        (Script(cut=True), {}, "as the model's generation_config.json has it; start it with --generation-config vllm"),
        (Script(lora=None), {}, "takes no adapters; start it with --enable-lora"),
        (Script(lora={**LORA, "max_lora_rank": 4}), {}, "start it with --max-lora-rank 8"),
        (Script(lora={**LORA, "max_loras": 1}), {}, "start it with --max-loras 4"),
        (
            Script(lora={**LORA, "target_modules": None}),
            {"score": True},
            "would end when it scores beside other requests; start it with --lora-target-modules down_proj gate_proj",
        ),
        (Script(lora={**LORA, "target_modules": ["q_proj", "lm_head"]}), {"score": True}, "a head that takes adapters"),
        (
            Script(extension=None),
            {"worker_extension": True},
            "does not show our worker extension; start it",
        ),
        (Script(development=False), {"worker_extension": True}, "VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls"),
        (Script(version="0.33.1"), {"worker_extension": True}, r"needs vllm==0.32.\*.* installed: vllm 0.33.1"),
    ],
)
async def test_refused(script: Script, runtime: dict[str, bool], says: str, tiny_model: Path) -> None:
    spec = EngineSpec(str(tiny_model), "base", 8, Path("/log"))
    async with served(script) as server:
        with pytest.raises(ConfigError, match=says) as seen:
            await inspect(server, options(**runtime), spec, Timeouts())
    assert str(seen.value).startswith(f"the vLLM server at {server.base_url} ")


@pytest.mark.parametrize(
    ("script", "runtime"),
    [
        (Script(), EVERYTHING),
        (Script(development=False), {"score": True}),
        (Script(development=False, extension=None, version="0.33.1"), {}),
        (Script(lora={**LORA, "target_modules": None}), {}),
    ],
)
async def test_taken(script: Script, runtime: dict[str, bool]) -> None:
    async with served(script) as server:
        assert (await inspect(server, options(**runtime), SPEC, Timeouts())).context_tokens == 512
        await require_vocabulary(server, "base", len(LOGITS), Timeouts())
        with pytest.raises(ConfigError, match="another base model under the name 'base': it has no token 4"):
            await require_vocabulary(server, "base", len(LOGITS) + 1, Timeouts())
