"""An engine whose server speaks the contract's calls itself: what is left to a plugin is to launch it.

    GET /health       -> {"adapters": {name: directory}, "running_requests"}
    POST /art/load    {"name", "directory"} -> {"slot_digest", "expected_digest", "proof_s"}
    POST /art/unload  {"name"}
    POST /art/score   {"name", "sequences"} -> {"logprobs"}: of each sequence all but its first token's

A refusal's body is ``{"error": to_wire(error)}``. The process announces ``{"model": ModelInfo}`` once it serves, or
such an error. Such a server can't sleep.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
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
from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import CapabilityError, EngineError, EngineStartError, EngineUnavailableError, from_wire
from art_core.process import Child, ProcessError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter

_INFO = TypeAdapter(ModelInfo)
_LOG_LINES = 200
"""Searched for why a start failed."""


@dataclass(frozen=True)
class Launched:
    """A server's process, which may not answer yet."""

    child: Child
    base_url: str


@dataclass(frozen=True)
class _Running:
    """A server that answers."""

    server: EngineServer
    endpoint: Endpoint


class ServedEngine(ABC):
    """Inference engine; see the module's text and `InferenceEngine`.

    Args:
        name: The engine's, for messages.
        max_adapters: How many it holds at once.
        timeouts: How long its calls may take.
    """

    def __init__(self, name: str, max_adapters: int, timeouts: Timeouts | None = None) -> None:
        self._name = name
        self._max_adapters = max_adapters
        self._timeouts = timeouts or Timeouts()
        self._running: _Running | None = None
        self._starting = False

    async def start(self, spec: EngineSpec) -> Endpoint:
        """See `InferenceEngine.start`."""
        if self._running is not None or self._starting:
            raise EngineError(f"engine {self._name!r} is started already; stop it first", stage="start")
        local_directory(spec.base_model)  # refused here in microseconds, not by the process in seconds
        self._starting = True
        try:
            self._running = await self._start(spec)
        finally:
            self._starting = False
        return self._running.endpoint

    async def health(self) -> EngineHealth:
        """See `InferenceEngine.health`."""
        data = await self._call("GET", "/health", None, self._timeouts.engine_silence_s)
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
        raise self._undeclared()

    async def wake(self) -> None:
        """Not declared: raises `CapabilityError`."""
        raise self._undeclared()

    async def stop(self) -> None:
        """See `InferenceEngine.stop`."""
        running, self._running = self._running, None
        if running is not None:
            await running.server.stop()

    @abstractmethod
    async def _launch(self, spec: EngineSpec, settings: Mapping[str, Any]) -> Launched:
        """Launch the server.

        Args:
            spec: What it is to serve.
            settings: What every server is told of it; `_settings`.

        Raises:
            ConfigError: It can't work here; nothing was launched.
            EngineStartError: The command can't be started.
        """

    def _start_error(self, error: ProcessError, log: str) -> EngineStartError:
        """The error of a process that ended, or did not announce itself, while it started.

        Args:
            error: Its message ends with the log's last lines.
            log: More of them.
        """
        del log
        return EngineStartError(f"engine {self._name!r} did not start: {error}", stage="start")

    async def _start(self, spec: EngineSpec) -> _Running:
        api_key = secrets.token_urlsafe(32)
        launched = await self._launch(spec, _settings(spec, api_key))
        child, base_url = launched.child, launched.base_url
        try:
            model = await self._model(child)
        except BaseException:
            await child.stop(0)
            raise
        server = EngineServer(self._name, base_url, {"Authorization": f"Bearer {api_key}"}, child, self._timeouts)
        return _Running(server, Endpoint(base_url, api_key, model, self._max_adapters))

    async def _model(self, child: Child) -> ModelInfo:
        try:
            hello = await child.ready(self._timeouts.engine_start_s)
        except ProcessError as error:
            raise self._start_error(error, child.log_tail(_LOG_LINES)) from error
        if "error" in hello:
            raise from_wire(hello["error"], EngineStartError)
        return _INFO.validate_python(hello["model"])

    async def _call(self, method: str, path: str, request: object, timeout_s: float) -> dict[str, Any]:
        if self._running is None:
            raise EngineUnavailableError(f"engine {self._name!r} is not started; call start first")
        response = await self._running.server.ask(method, path, request, timeout_s)
        data: dict[str, Any] = response.json()
        if response.is_error:
            raise from_wire(data["error"], EngineError)
        return data

    def _undeclared(self) -> CapabilityError:
        return CapabilityError(
            f"engine {self._name!r} does not declare capability {Capability.SLEEP.value!r}; "
            "run engine and trainer on different devices, or on a CPU, where nothing has to sleep"
        )


def _settings(spec: EngineSpec, api_key: str) -> dict[str, Any]:
    return {
        "api_key": api_key,
        "base_model": spec.base_model,
        "base_name": spec.base_name,
        "lora_rank": spec.lora_rank,
        "chat_template": spec.chat_template,
        "chat_template_kwargs": dict(spec.chat_template_kwargs),
    }
