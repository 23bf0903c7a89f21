"""Contract of an inference engine.

Intent. An engine holds one frozen base model and several LoRA adapters, and answers OpenAI-style HTTP on a
loopback endpoint. Core never speaks to it but through this contract and that endpoint; clients never reach the
endpoint but through the gateway.

Who calls, and how often. The backend calls `start` first and `stop` at least once; the publisher calls
`load_adapter` once per step and `unload_adapter` once per step that has drained; the loop calls `score` twice per
step at most; core calls `health` about twice a second, so it must cost little and answer under load. Calls may overlap
with requests on the endpoint; `load_adapter`, `unload_adapter`, `sleep` and `wake` are never made concurrently with
one another.

Cancellation. A cancelled `load_adapter` may or may not have taken effect; the caller unloads the name. A cancelled
`start` leaves no process.

Death. Core learns of it from `health`, which says `EngineDiedError` once the process has ended. It then calls `stop`
and `start` with the same spec, any number of times: the new process has an endpoint of its own and no adapters, and
core loads and proves again what was served. An engine that lives but does not answer says `EngineUnavailableError`;
core treats it as dead after `Timeouts.engine_silence_s` only, because being started again cuts every request.

Crash. The engine's process and all its children die with the process that called `start`, also on kill -9. An
engine keeps nothing on disk that a later start depends on.

The endpoint must answer
`GET /health` · `GET /v1/models` · `POST /v1/completions` · `POST /v1/chat/completions`, all with
`Authorization: Bearer <Endpoint.api_key>`. Model names are the adapter names given to `load_adapter` and
`EngineSpec.base_name`; anything else is 404, never the base. With `return_token_ids: true` a completion carries
`prompt_token_ids` (at the top level, or on each choice) and `choices[].token_ids` (the sampled ids, stop token
included); with `logprobs: true` one logprob per sampled token, of the distribution sampled at the request's
temperature. What the engine can't do of a request (tools that the chat template does not know, structured output) is a
400 that says so, and never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from art_core.base_model import ModelInfo
from art_core.checkpoint import StoredCheckpoint


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is started with."""

    base_model: str
    """Local directory or hub name."""
    base_name: str
    """Public name under which the base model itself answers."""
    lora_rank: int
    """Largest adapter rank that will be loaded."""
    log_path: Path
    """File that the engine's process writes its log to."""
    device_ids: tuple[int, ...] | None = None
    """GPUs to use; None: the engine's choice."""
    chat_template: str | None = None
    """Overrides the model's own Jinja template."""
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further variables of every rendering, as JSON carries them; a request's own ``chat_template_kwargs`` win."""


@dataclass(frozen=True)
class Endpoint:
    """Where a started engine answers."""

    base_url: str
    """For example ``http://127.0.0.1:41234``, without ``/v1``."""
    api_key: str
    model: ModelInfo
    max_adapters: int
    """How many adapters can be loaded at once."""


@dataclass(frozen=True)
class LoadedAdapter:
    """What the engine says of an adapter that it has just loaded."""

    name: str
    slot_digest: str | None = None
    """Hex sha256 over the tensors *read back from the slot that serves requests*; None without WEIGHT_PROOF."""
    expected_digest: str | None = None
    """The same digest computed from the checkpoint's files, by the same cast and packing."""
    proof_s: float | None = None
    """Of the time that loading took, the two digests' part; None where the engine does not tell it apart."""


@dataclass(frozen=True)
class EngineHealth:
    """A live engine's state."""

    adapters: Mapping[str, Path]
    """The engine's own list: adapter name to the directory it was loaded from."""
    running_requests: int


class InferenceEngine(Protocol):
    """Serves one base model and several adapters; see the module's contract."""

    async def start(self, spec: EngineSpec) -> Endpoint:
        """Launch the engine and wait until it answers; first, or again after `stop`.

        Raises:
            ConfigError: The spec can't work here (base model missing, device absent); nothing was launched.
            EngineStartError: It did not come up; the message ends with its log's last lines.
        """
        ...

    async def health(self) -> EngineHealth:
        """State of the running engine.

        Raises:
            EngineDiedError: Its process has ended; said within a second of it. Or a server that somebody else runs has
                lost what it was given, because it was started again.
            EngineUnavailableError: It does not answer, or was never started.
        """
        ...

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        """Load the checkpoint's adapter under a name not in use; when it returns, the name answers requests.

        Raises:
            CheckpointCorruptError: The adapter's files don't fit the base model or aren't safetensors.
            EngineError: The name is taken or no slot is free.
            EngineUnavailableError: The engine has died.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget a name; idempotent. Requests in flight on it finish with its weights.

        Raises:
            EngineUnavailableError: The engine has died.
        """
        ...

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """Natural-log probability, at temperature 1, of every token given those before it.

        Args:
            name: A loaded adapter, or the base name.
            sequences: Per sequence, T token ids.

        Returns:
            Per sequence, T float32; entry 0 is 0.

        Raises:
            CapabilityError: The engine does not declare SCORE.
            NoRouteError: The name is not loaded.
        """
        ...

    async def sleep(self, level: int) -> None:
        """Give device memory back (1: weights to host; 2: weights dropped).

        Raises:
            CapabilityError: The engine does not declare SLEEP.
        """
        ...

    async def wake(self) -> None:
        """Take device memory again; loaded adapters answer as before.

        Raises:
            CapabilityError: The engine does not declare SLEEP.
        """
        ...

    async def stop(self) -> None:
        """End the engine and every process it started; idempotent, never raises for a dead engine."""
        ...
