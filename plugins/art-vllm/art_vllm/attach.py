"""A stock server that somebody else runs: found, checked, spoken to, and never stopped."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_core.base_model import BaseIdentity, ModelInfo, base_digest, local_directory
from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import ConfigError, EngineError, EngineStartError, nearest
from art_core.protocols.engine import Endpoint, EngineSpec
from art_vllm.argument import EXTENSION
from art_vllm.options import Runtime, VllmOptions


@dataclass(frozen=True)
class Paths:
    """One directory under two names: here, and where the server runs."""

    here: Path | None = None
    there: Path | None = None

    @classmethod
    def of(cls, runtime: Runtime) -> Paths:
        """As options give them."""
        local, server = runtime.local_checkpoint_root, runtime.server_checkpoint_root
        return cls() if local is None or server is None else cls(Path(local).absolute(), Path(server))

    def to_server(self, directory: Path) -> str:
        """What the server calls a directory of ours.

        Raises:
            EngineError: It is outside of what the server sees.
        """
        if self.here is None or self.there is None:
            return str(directory)
        if not directory.is_relative_to(self.here):
            raise EngineError(f"{directory} is not below vllm_runtime['local_checkpoint_root'], {self.here}")
        return str(self.there / directory.relative_to(self.here))

    def from_server(self, directory: Path) -> Path:
        """What we call a directory of the server's."""
        if self.here is None or self.there is None or not directory.is_relative_to(self.there):
            return directory
        return self.here / directory.relative_to(self.there)


async def attach(options: VllmOptions, spec: EngineSpec, timeouts: Timeouts) -> tuple[EngineServer, Endpoint, Path]:
    """Find the server and check that it serves what is asked for.

    Args:
        options: Where it is.
        spec: What it must serve; the base model's files must be here too.
        timeouts: For its answers.

    Returns:
        The server, its endpoint and the base model's directory here.

    Raises:
        ConfigError: It serves something else.
        EngineStartError: It did not answer in time.
    """
    runtime, directory = options.runtime, local_directory(spec.base_model)
    if directory is None or spec.chat_template is not None:
        what = "a local directory as base model" if directory is None else "no chat_template: start it with that"
        raise ConfigError(f"a vLLM server that somebody else runs needs {what}")
    url = str(runtime.server_url).rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {runtime.api_key}"} if runtime.api_key else {}
    server = EngineServer("vllm", url, headers, None, timeouts)
    await _healthy(server, runtime.health_timeout_s, timeouts)
    listed = (await server.ask("GET", "/v1/models", None, timeouts.connect_s)).json()["data"]
    bases = {card["id"]: card for card in listed if not card["parent"]}
    if spec.base_name not in bases:
        raise ConfigError(
            f"the vLLM server at {url} does not serve {spec.base_name!r}, {nearest(spec.base_name, bases)}; start it "
            f"with --served-model-name {spec.base_name}"
        )
    if runtime.worker_extension:
        await _require_extension(server, timeouts)
    model = await asyncio.to_thread(_model, options, spec, directory, bases[spec.base_name]["max_model_len"])
    return server, Endpoint(url, runtime.api_key or "", model, options.max_loras), directory


async def _healthy(server: EngineServer, timeout_s: float, timeouts: Timeouts) -> None:
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    response = await server.ask("GET", "/health", None, timeouts.connect_s)
                    if response.status_code == 200:
                        return
                    last = f"status {response.status_code}"
                except EngineError as error:
                    last = str(error)
                await asyncio.sleep(timeouts.health_s)
    except TimeoutError as error:
        raise EngineStartError(
            f"the vLLM server at {server.base_url} was not healthy within {timeout_s:g} s: {last}; start it, or "
            f"correct vllm_runtime['server_url']",
            stage="start",
        ) from error


async def _require_extension(server: EngineServer, timeouts: Timeouts) -> None:
    """Look before calling it: a method that the worker lacks would end somebody's server."""
    response = await server.ask("GET", "/server_info", None, timeouts.load_adapter_s)
    if EXTENSION not in response.text:
        raise ConfigError(
            f"the vLLM server at {server.base_url} does not show our worker extension; start it with "
            f"VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {EXTENSION}, or leave worker_extension out"
        )


def _model(options: VllmOptions, spec: EngineSpec, directory: Path, context_tokens: int) -> ModelInfo:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    own = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return ModelInfo(
        identity=BaseIdentity(name=spec.base_model, digest=base_digest(directory)),
        vocab_size=text["vocab_size"],
        context_tokens=context_tokens,
        chat_template=_template(directory),
        dtype=own if options.dtype == "auto" else options.dtype,
    )


def _template(directory: Path) -> str | None:
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None
