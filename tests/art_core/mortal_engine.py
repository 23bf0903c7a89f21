"""An engine that dies and starts when told: numpy slots behind a scripted HTTP side, in this process.

What it does not prove: that an operating system's process dies as `kill` does here (sockets break in the middle of
answers, and at once), that a real engine's `health` notices, or how long a real start takes. Those are in
tests/faults/test_recovery.py. What it adds: every start has another address, starts can be held or made to fail, and an
engine can be silent without being dead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from art_core.checkpoint import StoredCheckpoint
from art_core.errors import EngineDiedError, EngineStartError, EngineUnavailableError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from tests.art_core.builtin.numpy_engine import NumpyEngine
from tests.art_core.fake_engine_http import FakeEngine


@dataclass
class MortalEngine(NumpyEngine):
    """Counts its starts; see the module's text."""

    starts: int = 0
    failing_starts: int = 0
    silent: Exception | None = None
    looks: int = 0
    starts_before: int = 1
    """Starts before it was killed last."""
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a start begins."""
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    """A start goes on once this is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.may_start.set()
        self.http: FakeEngine | None = None

    async def start(self, spec: EngineSpec) -> Endpoint:
        self.starts += 1
        self.starting.set()
        await self.may_start.wait()
        if self.starts <= self.failing_starts:
            raise EngineStartError(f"start {self.starts} fails")
        self.dead, self.silent = False, None
        self.http = FakeEngine()
        return self.http.endpoint

    async def kill(self) -> None:
        """Die: nothing answers any more, every slot is gone."""
        self.starts_before = self.starts
        await self.stop()

    async def stop(self) -> None:
        self.dead = True
        self.starting.clear()
        self.slots.clear()
        self.paths.clear()
        if self.http is not None:
            await asyncio.to_thread(self.http.close)

    async def health(self) -> EngineHealth:
        self.looks += 1
        if self.silent is not None:
            raise self.silent
        if self.dead:
            raise EngineDiedError("the process was killed by SIGKILL")
        return await super().health()

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        loaded = await super().load_adapter(name, checkpoint)
        assert self.http is not None
        self.http.adapters.add(name)
        return loaded

    async def unload_adapter(self, name: str) -> None:
        await super().unload_adapter(name)
        assert self.http is not None
        self.http.adapters.discard(name)


SILENT = EngineUnavailableError("no answer within 5 s")
