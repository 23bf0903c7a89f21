"""Which adapter names answer, which slot each has, and who still uses it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from art_core.errors import EngineError, NoRouteError, nearest
from art_core.protocols.engine import LoadedAdapter
from art_torch.serve.adapter_file import read_adapter
from art_torch.serve.lora_slot import BASE_SLOT, LoRASlots


@dataclass(eq=False)
class Adapter:
    """One load of an adapter, or the base model itself."""

    name: str
    directory: Path
    """Where it was loaded from; of no meaning for the base."""
    slot: int
    load_id: int
    """Fresh for every load: what the key/value caches are keyed by."""
    users: int = 0
    """Sequences that run on it."""
    retired: bool = False
    """Unloaded: takes no new sequence; its slot is free once the last user has gone."""


class AdapterTable:
    """Names to adapters. Called from several threads; loading is one at a time by the engine's contract."""

    def __init__(self, slots: LoRASlots, base_name: str, on_free: Callable[[Adapter], None]) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._load_ids = itertools.count(1)
        self._free = set(range(slots.max_loras))
        self._base = Adapter(base_name, Path(), BASE_SLOT, load_id=0)
        self._adapters: dict[str, Adapter] = {}
        self._on_free = on_free

    def acquire(self, name: str, users: int) -> Adapter:
        """Take an adapter for a number of sequences, each of which is to `release` it.

        Raises:
            NoRouteError: The name is neither loaded nor the base's.
        """
        with self._lock:
            adapter = self._base if name == self._base.name else self._adapters.get(name)
            if adapter is None:
                known = [self._base.name, *self._adapters]
                raise NoRouteError(f"model {name!r} is not served; {nearest(name, known)}")
            adapter.users += users
            return adapter

    def release(self, adapter: Adapter) -> None:
        """One sequence has ended."""
        with self._lock:
            adapter.users -= 1
            self._free_if_unused(adapter)

    def load(self, name: str, directory: Path) -> LoadedAdapter:
        """Read, check, copy into a free slot and digest; the name answers once this returns.

        Raises:
            EngineError: The name is taken or no slot is free.
            CheckpointCorruptError: The files don't fit; everything is as it was.
        """
        slot = self._reserve(name)
        try:
            tensors = read_adapter(directory, self._slots.sites, self._slots.lora_rank)
            self._slots.write(slot, tensors)
            start = time.perf_counter()
            found = self._slots.digest(slot, tensors.rank, tensors.pairs.keys())
            expected = tensors.digest(self._slots.dtype)
            proof_s = time.perf_counter() - start
        except BaseException:
            with self._lock:
                self._free.add(slot)
            raise
        with self._lock:
            self._adapters[name] = Adapter(name, directory, slot, next(self._load_ids))
        return LoadedAdapter(name, found, expected, proof_s)

    def unload(self, name: str) -> None:
        """Forget a name; idempotent. Its running sequences finish."""
        with self._lock:
            adapter = self._adapters.pop(name, None)
            if adapter is not None:
                adapter.retired = True
                self._free_if_unused(adapter)

    def names(self) -> list[str]:
        """Every name that answers, the base's first."""
        with self._lock:
            return [self._base.name, *self._adapters]

    def directories(self) -> dict[str, Path]:
        """Adapter name to the directory that it was loaded from."""
        with self._lock:
            return {adapter.name: adapter.directory for adapter in self._adapters.values()}

    def _reserve(self, name: str) -> int:
        with self._lock:
            if name in self._adapters or name == self._base.name:
                raise EngineError(f"adapter name {name!r} is taken; unload it first, or choose another name")
            if not self._free:
                total, draining = self._slots.max_loras, self._slots.max_loras - len(self._adapters)
                raise EngineError(
                    f"no free slot for adapter {name!r}: {total} of {total} in use ({draining} of them by unloaded "
                    "adapters whose requests still run); unload one, or raise max_loras"
                )
            return self._free.pop()

    def _free_if_unused(self, adapter: Adapter) -> None:
        if adapter.retired and adapter.users == 0:
            self._free.add(adapter.slot)
            self._on_free(adapter)
