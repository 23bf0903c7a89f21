"""An engine that holds its slots in this process, for the tests of a publisher; it can be told to break a promise.

Real: slots hold the files' tensors after a cast, digests are sha256 over them, scores depend on every one of them.
It does not prove anything about a real engine: it generates nothing and has no endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, StoredCheckpoint
from art_core.errors import CapabilityError, EngineError, EngineUnavailableError, NoRouteError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter

Slot = dict[str, NDArray[np.float32]]


class Fault(StrEnum):
    """What the engine does wrong with the next adapter."""

    NONE = "none"
    STALE = "the previous adapter's weights answer"
    ELSEWHERE = "the name stands for another directory"
    REFUSED = "load_adapter raises, nothing was loaded"
    LATE = "load_adapter takes effect and then raises"
    HANGS = "load_adapter takes effect and does not return"
    DEAD = "the engine has died"


class MemoryEngine:
    """Keeps the engine's contract, but for the fault it is told."""

    def __init__(self) -> None:
        self.fault = Fault.NONE
        self.loading = asyncio.Event()
        """Set once a load that hangs has taken effect."""
        self._slots: dict[str, Slot] = {}
        self._directories: dict[str, Path] = {}

    async def start(self, spec: EngineSpec) -> Endpoint:
        """Refused: there is nothing to start."""
        raise CapabilityError("an engine in memory has no endpoint")

    async def health(self) -> EngineHealth:
        """The adapters and their directories."""
        self._require_alive()
        return EngineHealth(dict(self._directories), 0)

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        """Load, with the fault."""
        self._require_alive()
        if self.fault is Fault.REFUSED or name in self._slots:
            raise EngineError(f"adapter name {name!r} is taken, or no slot is free")
        expected = slot_of(checkpoint.directory)
        stale = self.fault is Fault.STALE and self._slots
        self._slots[name] = next(reversed(self._slots.values())) if stale else expected
        elsewhere = self.fault is Fault.ELSEWHERE
        self._directories[name] = checkpoint.directory.parent if elsewhere else checkpoint.directory
        if self.fault is Fault.LATE:
            raise EngineUnavailableError("the engine did not answer in time")
        if self.fault is Fault.HANGS:
            self.loading.set()
            await asyncio.Event().wait()
        return LoadedAdapter(name, digest(self._slots[name]), digest(expected))

    async def unload_adapter(self, name: str) -> None:
        """Forget a name."""
        self._require_alive()
        self._slots.pop(name, None)
        self._directories.pop(name, None)

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """Numbers below 0 that depend on the slot's every tensor and on each token."""
        self._require_alive()
        if name not in self._slots:
            raise NoRouteError(f"{name!r} is not loaded")
        return [logprobs(self._slots[name], tokens_T) for tokens_T in sequences]

    async def sleep(self, level: int) -> None:
        """Not declared."""
        raise CapabilityError(f"{Capability.SLEEP.value} is not declared")

    async def wake(self) -> None:
        """Not declared."""
        raise CapabilityError(f"{Capability.SLEEP.value} is not declared")

    async def stop(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self._directories.clear()

    def _require_alive(self) -> None:
        if self.fault is Fault.DEAD:
            raise EngineUnavailableError("the engine has died")


def slot_of(directory: Path) -> Slot:
    """What a checkpoint's tensors become in a slot: the scale folded into B."""
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    scale = np.float32(config["lora_alpha"] / config["r"])
    tensors: Slot = load_file(directory / ADAPTER)
    return {name: each * scale if ".lora_B." in name else each for name, each in tensors.items()}


def digest(slot: Slot) -> str:
    """sha256 over a slot's bytes."""
    return hashlib.sha256(b"".join(slot[name].tobytes() for name in sorted(slot))).hexdigest()


def logprobs(slot: Slot, tokens_T: NDArray[np.int32]) -> NDArray[np.float32]:
    """A stand-in for a model: below 0, entry 0 is 0, and moved by every tensor of the slot."""
    flat_N = np.concatenate([slot[name].ravel() for name in sorted(slot)]).astype(np.float64)
    index_N = np.arange(flat_N.size)
    moved_T = [float(flat_N @ np.sin(index_N * (1.0 + int(token) / 7.0))) for token in tokens_T]
    logprobs_T = (-5.0 + np.tanh(np.asarray(moved_T) / 20.0)).astype(np.float32)
    logprobs_T[0] = 0.0
    return logprobs_T
