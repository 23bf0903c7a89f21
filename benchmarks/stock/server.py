"""Engines' servers as their own projects start them, with the arguments that ours starts them with."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from art_core.adapter_file import adaptable_modules
from art_core.config import Environment
from art_core.environment import interpreter
from art_core.process import Child
from art_core.protocols.engine import EngineSpec

BARE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1, do_sample=False)
"""


@dataclass(frozen=True)
class Stock:
    """How an engine's own project starts its server."""

    command: list[str]
    variables: Mapping[str, str]
    load: str = ""
    """Path of its load call; empty: it ends by itself once it has generated a token."""
    unload: str = ""
    model: str = "{}"
    """What a request names to get an adapter."""


def torch_stock(options: Mapping[str, Any], spec: EngineSpec, port: int) -> Stock:
    """Not a server: torch has none of its own. A bare process that loads the model and generates a token."""
    return Stock([sys.executable, "-c", BARE, spec.base_model], {})


def vllm_stock(options: Mapping[str, Any], spec: EngineSpec, port: int) -> Stock:
    """The OpenAI server of vLLM, without our middleware and worker extension."""
    from art_vllm.argument import server_arguments, server_variables
    from art_vllm.options import VllmOptions
    from art_vllm.preflight import wants_cuda
    from art_vllm.requirement import ENVIRONMENT
    from art_vllm.server import _target_modules

    bare = VllmOptions(**options, engine_args={"middleware": None, "worker_extension_cls": None})
    cuda = wants_cuda(bare)
    words = [*_target_modules(Path(spec.base_model)), *server_arguments(bare, spec, cuda=cuda)]
    python = interpreter(ENVIRONMENT, Environment.read().cache)
    where = [f"--model={spec.base_model}", "--host=127.0.0.1", f"--port={port}"]
    return Stock(
        [python, "-m", "vllm.entrypoints.openai.api_server", *words, *where],
        server_variables(bare, spec, None, cuda=cuda),
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    )


def sglang_stock(options: Mapping[str, Any], spec: EngineSpec, port: int) -> Stock:
    """The HTTP server of SGLang."""
    from art_sglang.engine import _CPU_VARIABLES
    from art_sglang.library import ENVIRONMENT
    from art_sglang.options import SglangOptions, resolve_device, server_arguments

    chosen = SglangOptions(**options)
    device = resolve_device(chosen)
    words = []
    for name, value in {**server_arguments(chosen, spec, device), "host": "127.0.0.1", "port": port}.items():
        flag = f"--{name.replace('_', '-')}"
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    python, variables = interpreter(ENVIRONMENT, Environment.read().cache), _CPU_VARIABLES if device == "cpu" else {}
    kinds = {name.rpartition(".")[2] for name in adaptable_modules(Path(spec.base_model))}
    command = [python, "-m", "sglang.launch_server", *words, "--lora-target-modules", *sorted(kinds)]
    return Stock(command, variables, "/load_lora_adapter", "/unload_lora_adapter", "base:{}")


STOCKS: Mapping[str, Callable[[Mapping[str, Any], EngineSpec, int], Stock]] = {
    "torch": torch_stock,
    "vllm": vllm_stock,
    "sglang": sglang_stock,
}


class StockServer:
    """A stock server, from its start on."""

    def __init__(self, stock: Stock, child: Child, port: int) -> None:
        self.stock, self.child = stock, child
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600)

    @classmethod
    async def start(cls, engine: str, options: Mapping[str, Any], spec: EngineSpec) -> StockServer:
        """Start it and wait until it is healthy."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        stock = STOCKS[engine](options, spec, port)
        child = await Child.launch(stock.command, log_path=spec.log_path.with_name("stock.log"), env=stock.variables)
        server, ended = cls(stock, child, port), asyncio.ensure_future(child.exited())
        while not (await asyncio.wait({ended}, timeout=0.05))[0]:
            with suppress(httpx.TransportError):
                if stock.load and (await server.http.get("/health")).status_code == 200:
                    ended.cancel()
                    return server
        if stock.load or ended.result():
            raise SystemExit(f"the stock server ended:\n{child.log_tail(4000)}")
        return server

    async def load(self, name: str, directory: Path) -> float:
        """Seconds of the bare load call."""
        start = time.perf_counter()
        await self._post(self.stock.load, {"lora_name": name, "lora_path": str(directory)})
        return time.perf_counter() - start

    async def first_token(self, name: str) -> float:
        """Seconds of a request for one token of an adapter."""
        start = time.perf_counter()
        await self._post("/v1/completions", {"model": self.stock.model.format(name), "prompt": [5], "max_tokens": 1})
        return time.perf_counter() - start

    async def unload(self, name: str) -> None:
        """Forget an adapter."""
        await self._post(self.stock.unload, {"lora_name": name})

    async def _post(self, path: str, body: object) -> None:
        response = await self.http.post(path, json=body)
        if response.is_error:
            raise SystemExit(f"the stock server answers {path} with {response.status_code}: {response.text}")

    async def stop(self) -> None:
        """End it; idempotent."""
        await self.http.aclose()
        await self.child.stop(20)
