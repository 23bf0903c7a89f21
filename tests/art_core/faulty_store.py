"""The file store, told to fail: what a remote store's errors do to a run.

It proves how core treats a store that is away, slow or refuses. It does not prove that a real store's errors are told
apart; each store's own tests do.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from pathlib import Path

from art_core.checkpoint import Checkpoint
from art_core.file_store import FileStore
from art_core.protocols.store import StoreEntry
from art_core.run_key import RunKey


class FaultyStore(FileStore):
    """Raises `errors` one after another, once each, at commits; and holds commits back while `gate` is closed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.errors: deque[Exception] = deque()
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[int] = []
        self.away: Exception | None = None

    async def check(self) -> None:
        if self.away is not None:
            raise self.away
        await super().check()

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        self.calls.append(checkpoint.manifest.step)
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if self.errors:
            raise self.errors.popleft()
        return await super().commit(run, checkpoint)
