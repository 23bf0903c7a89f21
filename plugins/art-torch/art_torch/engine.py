"""The torch inference engine as ART sees it: launches `art_torch.serve.server` and speaks to it. Imports no torch."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from art_core.base_model import ModelInfo, local_directory
from art_core.capability import Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Timeouts
from art_core.engine_server import EngineServer, listen
from art_core.errors import (
    CapabilityError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    from_wire,
)
from art_core.process import Child, ProcessError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from art_torch.options import VARIABLES, TorchEngineOptions

_INFO = TypeAdapter(ModelInfo)


@dataclass(frozen=True)
class _Running:
    """A server process that answers."""

    server: EngineServer
    endpoint: Endpoint


class TorchEngine:
    """Inference engine in a process of its own; see `InferenceEngine`.

    Args:
        options: How it runs.
        timeouts: How long its calls may take.
    """

    def __init__(self, options: TorchEngineOptions, timeouts: Timeouts | None = None) -> None:
        self._options = options
        self._timeouts = timeouts or Timeouts()
        self._running: _Running | None = None
        self._starting = False

    async def start(self, spec: EngineSpec) -> Endpoint:
        """See `InferenceEngine.start`."""
        if self._running is not None or self._starting:
            raise EngineError("engine 'torch' is started already; stop it first", stage="start")
        local_directory(spec.base_model)  # refused here in microseconds, not by the process in seconds
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

    async def _launch(self, spec: EngineSpec) -> _Running:
        api_key = secrets.token_urlsafe(32)
        # Bound here and handed over open, so that no other process can take the port in between.
        with listen() as listener, tempfile.TemporaryFile() as settings:
            # A file without a name: neither the key nor the template shows in the process table or on disk.
            settings.write(json.dumps(self._settings(spec, api_key)).encode())
            settings.seek(0)
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            fds = (listener.fileno(), settings.fileno())
            try:
                child = await Child.launch(
                    [sys.executable, "-P", "-m", "art_torch.serve.server", *map(str, fds)],
                    log_path=spec.log_path,
                    env=VARIABLES,
                    pass_fds=fds,
                )
            except ProcessError as error:
                raise EngineStartError(f"engine 'torch': {error}", stage="start") from error
        server = EngineServer("torch", base_url, {"Authorization": f"Bearer {api_key}"}, child, self._timeouts)
        return _Running(server, Endpoint(base_url, api_key, await self._model(child), self._options.max_loras))

    def _settings(self, spec: EngineSpec, api_key: str) -> dict[str, Any]:
        return {
            "options": self._options.model_dump(),
            "api_key": api_key,
            "base_model": spec.base_model,
            "base_name": spec.base_name,
            "lora_rank": spec.lora_rank,
            "device_ids": spec.device_ids,
            "chat_template": spec.chat_template,
            "chat_template_kwargs": dict(spec.chat_template_kwargs),
        }

    async def _model(self, child: Child) -> ModelInfo:
        try:
            hello = await child.ready(self._timeouts.engine_start_s)
        except BaseException as error:
            await child.stop(0)
            if isinstance(error, ProcessError):
                raise EngineStartError(f"engine 'torch' did not start: {error}", stage="start") from error
            raise
        if "error" in hello:
            await child.stop(0)
            raise from_wire(hello["error"], EngineStartError)
        return _INFO.validate_python(hello["model"])

    async def _call(self, method: str, path: str, request: object, timeout_s: float) -> dict[str, Any]:
        if self._running is None:
            raise EngineUnavailableError("engine 'torch' is not started; call start first")
        response = await self._running.server.ask(method, path, request, timeout_s)
        data: dict[str, Any] = response.json()
        if response.is_error:
            raise from_wire(data["error"], EngineError)
        return data


def _undeclared() -> CapabilityError:
    return CapabilityError(
        f"engine 'torch' does not declare capability {Capability.SLEEP.value!r}; "
        "run engine and trainer on different devices, or on a CPU, where nothing has to sleep"
    )
