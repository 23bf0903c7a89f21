"""The SGLang engine as ART sees it: launches `art_sglang.serve.server` in SGLang's interpreter and speaks to it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from art_core.base_model import ModelInfo, local_directory
from art_core.capability import Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Environment, Timeouts
from art_core.device import gpus
from art_core.engine_server import EngineServer, listen
from art_core.environment import interpreter
from art_core.errors import (
    CapabilityError,
    ConfigError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    from_wire,
)
from art_core.process import Child, ProcessError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from art_sglang.failures import start_error
from art_sglang.library import ENVIRONMENT
from art_sglang.options import SglangOptions, resolve_device, server_arguments, visible_devices

_log = logging.getLogger("art.engine")
_INFO = TypeAdapter(ModelInfo)
_SERVER = "art_sglang.serve.server"
_LOG_LINES = 200
"""Searched for why a start failed; SGLang's processes each end with a long trace."""
_CPU_VARIABLES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # Threads of a parallel region spin a few microseconds, then sleep: engine and trainer share the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}


@dataclass(frozen=True)
class _Running:
    """A server process that answers."""

    server: EngineServer
    endpoint: Endpoint
    scratch: tempfile.TemporaryDirectory[str]
    """Where the server lays adapters out; it removes it itself should this process be killed."""


class SglangEngine:
    """Inference engine in a process group of its own; see `InferenceEngine`.

    Args:
        options: How it runs.
        timeouts: How long its calls may take.
    """

    def __init__(self, options: SglangOptions, timeouts: Timeouts | None = None) -> None:
        self._options = options
        self._timeouts = timeouts or Timeouts()
        self._running: _Running | None = None
        self._starting = False

    async def start(self, spec: EngineSpec) -> Endpoint:
        """See `InferenceEngine.start`."""
        if self._running is not None or self._starting:
            raise EngineError("engine 'sglang' is started already; stop it first", stage="start")
        self._starting = True
        try:
            self._running = await self._launch(spec)
        finally:
            self._starting = False
        return self._running.endpoint

    async def health(self) -> EngineHealth:
        """See `InferenceEngine.health`."""
        data = await self._call("GET", "/health", None, self._timeouts.connect_s)
        return EngineHealth(
            adapters={name: Path(directory) for name, directory in data["adapters"].items()},
            running_requests=data["running_requests"],
        )

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        """See `InferenceEngine.load_adapter`."""
        request = {"name": name, "directory": str(checkpoint.directory.absolute())}
        data = await self._call("POST", "/art/load", request, self._timeouts.load_adapter_s)
        return LoadedAdapter(name, data["slot_digest"], data["expected_digest"], data["proof_s"])

    async def unload_adapter(self, name: str) -> None:
        """See `InferenceEngine.unload_adapter`."""
        await self._call("POST", "/art/unload", {"name": name}, self._timeouts.load_adapter_s)

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """See `InferenceEngine.score`."""
        request = {"name": name, "sequences": [tokens.tolist() for tokens in sequences]}
        data = await self._call("POST", "/art/score", request, self._timeouts.score_s)
        return [np.array([0.0, *logprobs], np.float32) for logprobs in data["logprobs"]]

    async def sleep(self, level: int) -> None:
        """Not declared: raises `CapabilityError`."""
        raise _undeclared()

    async def wake(self) -> None:
        """Not declared: raises `CapabilityError`."""
        raise _undeclared()

    async def stop(self) -> None:
        """See `InferenceEngine.stop`."""
        running, self._running = self._running, None
        if running is not None:
            await running.server.stop()
            running.scratch.cleanup()

    async def _launch(self, spec: EngineSpec) -> _Running:
        local_directory(spec.base_model)  # refused here in microseconds, not by the process in a minute
        device = resolve_device(self._options)
        variables = await self._variables(spec, device)
        python = self._options.python or interpreter(ENVIRONMENT, Environment.read().cache)
        api_key = secrets.token_urlsafe(32)
        _log.info("engine 'sglang' starts in %s, in about a minute; its log is %s", python, spec.log_path)
        scratch = tempfile.TemporaryDirectory(prefix="art-sglang-")
        try:
            command = [python, "-P", "-m", _SERVER]
            settings = self._settings(spec, device, api_key)
            base_url, child = await _spawn(command, scratch.name, settings, spec.log_path, variables)
            endpoint = Endpoint(base_url, api_key, await self._model(child), self._options.max_loras)
        except BaseException:
            scratch.cleanup()
            raise
        headers = {"Authorization": f"Bearer {api_key}"}
        return _Running(EngineServer("sglang", base_url, headers, child, self._timeouts), endpoint, scratch)

    async def _variables(self, spec: EngineSpec, device: str) -> dict[str, str]:
        if device == "cuda":
            present, _ = await asyncio.to_thread(gpus)
            visible = Environment.read().cuda_visible_devices
            return {"CUDA_VISIBLE_DEVICES": visible_devices(self._options, spec.device_ids, len(present), visible)}
        if spec.device_ids is not None:
            raise ConfigError(
                f"inference_gpu_ids are {list(spec.device_ids)} and SGLang would run on the CPU: option 'device' is "
                f"{self._options.device!r}, and the CUDA driver is asked only where it is not 'cpu'; leave the ids out"
            )
        return dict(_CPU_VARIABLES)

    def _settings(self, spec: EngineSpec, device: str, api_key: str) -> dict[str, Any]:
        return {
            "arguments": server_arguments(self._options, spec, device),
            "api_key": api_key,
            "base_model": spec.base_model,
            "base_name": spec.base_name,
            "lora_rank": spec.lora_rank,
            "max_loras": self._options.max_loras,
            "chat_template": spec.chat_template,
            "chat_template_kwargs": dict(spec.chat_template_kwargs),
        }

    async def _model(self, child: Child) -> ModelInfo:
        try:
            hello = await child.ready(self._timeouts.engine_start_s)
        except BaseException as error:
            await child.stop(0)
            if isinstance(error, ProcessError):
                raise start_error(error, child.log_tail(_LOG_LINES)) from error
            raise
        if "error" in hello:
            await child.stop(0)
            raise from_wire(hello["error"], EngineStartError)
        return _INFO.validate_python(hello["model"])

    async def _call(self, method: str, path: str, request: object, timeout_s: float) -> dict[str, Any]:
        if self._running is None:
            raise EngineUnavailableError("engine 'sglang' is not started; call start first")
        response = await self._running.server.ask(method, path, request, timeout_s)
        data: dict[str, Any] = response.json()
        if response.is_error:
            raise from_wire(data["error"], EngineError)
        return data


async def _spawn(
    command: list[str], scratch: str, settings: Mapping[str, Any], log_path: Path, variables: Mapping[str, str]
) -> tuple[str, Child]:
    """The server's address and process."""
    # Bound here and handed over open, so that no other process can take the port in between.
    with listen() as listener, tempfile.TemporaryFile() as file:
        # A file without a name: neither the key nor the template shows in the process table or on disk.
        file.write(json.dumps(settings).encode())
        file.seek(0)
        fds = (listener.fileno(), file.fileno())
        try:
            child = await Child.launch(
                [*command, *map(str, fds), scratch], log_path=log_path, env=variables, pass_fds=fds
            )
        except ProcessError as error:
            raise EngineStartError(f"engine 'sglang': {error}", stage="start") from error
        return f"http://127.0.0.1:{listener.getsockname()[1]}", child


def _undeclared() -> CapabilityError:
    return CapabilityError(
        f"engine 'sglang' does not declare capability {Capability.SLEEP.value!r}; "
        "run engine and trainer on different devices, or on a CPU, where nothing has to sleep"
    )
