"""Copies a run's steps to a remote store, in the background, in a thread of its own.

Steps go by rising number, one at a time, so the newest step in the store says which ones it lacks: whatever a crash
left undone is found at the next start, without any record of our own. A store that is unavailable is tried again for
ever, at growing intervals; an error of any other kind halts the work until `resume` finds that it was mended.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from art_core.checkpoint import Checkpoint, StoredCheckpoint, verify
from art_core.errors import CheckpointError, RunError, StoreError, StoreUnavailableError
from art_core.loop_thread import LoopThread
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey

_FIRST_DELAY_S, _LAST_DELAY_S = 0.5, 60.0

_log = logging.getLogger("art.store")


@dataclass(frozen=True)
class Lag:
    """How far a store is behind the run's directory."""

    steps: int
    """Steps that wait to be copied, the one under way included."""
    seconds: float
    """How long the oldest of them has waited."""


@dataclass(frozen=True)
class _Job:
    what: str
    step: int | None
    """Of a copy, the step; None for what may happen late."""
    work: Callable[[], Awaitable[object]]
    since: float


class Replicator:
    """Copies steps to one store, and deletes there what is deleted here.

    Args:
        store: From now on called from this object's own thread only.
        run: Whose steps.
    """

    def __init__(self, store: CheckpointStore, run: RunKey) -> None:
        self._store = store
        self._run = run
        self._thread = LoopThread("art-replication")
        self._jobs: deque[_Job] = deque()
        self._changed = asyncio.Condition()
        self._worker: asyncio.Task[None] | None = None
        self._halted: RunError | None = None
        self._problem = ""
        self.damaged: dict[int, CheckpointError] = {}
        """Steps that could not be copied because they are damaged here, and how."""

    @property
    def lag(self) -> Lag:
        """How far the store is behind now."""
        waiting = [job.since for job in tuple(self._jobs) if job.step is not None]
        return Lag(len(waiting), time.monotonic() - waiting[0] if waiting else 0.0)

    @property
    def waiting(self) -> frozenset[int]:
        """The steps that wait to be copied, the one under way included."""
        return frozenset(job.step for job in tuple(self._jobs) if job.step is not None)

    async def entries(self) -> Sequence[StoreEntry]:
        """Make sure that the store can be used, and list what it holds of the run.

        Raises:
            CapabilityError: The store does not keep what it declares.
            StoreError: It can't be reached, or refuses.
        """

        async def ask() -> Sequence[StoreEntry]:
            await self._store.check()
            return await self._store.list(self._run)

        return await self._thread.call(ask())

    async def fetch(self, step: int, directory: Path) -> Checkpoint:
        """Copy a step out of the store; see `CheckpointStore.fetch`."""
        return await self._thread.call(self._store.fetch(self._run, step, directory))

    async def copy(self, steps: Iterable[StoredCheckpoint]) -> None:
        """Have steps copied, after what waits already.

        Args:
            steps: By rising number.
        """
        now = time.monotonic()
        jobs = [_Job(f"copy step {each.step}", each.step, partial(self._copy, each), now) for each in steps]
        await self._thread.call(self._add(jobs))

    async def delete(self, steps: Collection[int], protected: Collection[int]) -> None:
        """Have steps deleted in the store, after what waits already."""
        work = partial(self._store.delete, self._run, steps, protected)
        await self._thread.call(self._add([_Job(f"delete steps {sorted(steps)}", None, work, time.monotonic())]))

    async def drop_optimizer(self, steps: Collection[int]) -> None:
        """Have the optimizer state of steps dropped in the store, after what waits already."""
        work = partial(self._store.drop_optimizer, self._run, steps)
        what = f"drop the optimizer state of steps {sorted(steps)}"
        await self._thread.call(self._add([_Job(what, None, work, time.monotonic())]))

    async def resume(self) -> None:
        """Where an error halted the work, try again what failed, once.

        Raises:
            StoreError: It fails again, or in another way.
        """
        await self._thread.call(self._resume())

    async def wait(self, lag_steps: int, timeout_s: float) -> None:
        """Wait until no more than so many steps wait to be copied.

        Args:
            lag_steps: 0: every step that is whole is in the store.
            timeout_s: Longest wait.

        Raises:
            StoreUnavailableError: The time is over; the last error of the store is named.
            StoreError: The work has halted.
        """
        await self._thread.call(self._wait(lambda: self.lag.steps <= lag_steps, timeout_s))

    async def close(self, timeout_s: float) -> None:
        """Give what waits that long, then end; what is not copied by then is found at the next start.

        Args:
            timeout_s: For all of it.
        """
        try:
            await self._thread.call(self._wait(lambda: not self._jobs, timeout_s))
        except RunError as error:
            _log.warning("%s; the next start of the run goes on with it", error)
        finally:
            await asyncio.to_thread(self._thread.close)

    async def _add(self, jobs: Sequence[_Job]) -> None:
        async with self._changed:
            self._jobs.extend(jobs)
            self._changed.notify_all()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._jobs and self._halted is None)
            try:
                await self._until_done(self._jobs[0])
            except RunError as error:
                _log.error("copying to the store has halted, at %s: %s", self._jobs[0].what, error)
                self._halted = error
            else:
                self._jobs.popleft()
            async with self._changed:
                self._changed.notify_all()

    async def _until_done(self, job: _Job) -> None:
        """Do a job, again and again while the store is unavailable."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                await job.work()
            except RunError as error:
                if not error.retryable:
                    raise
                self._problem = str(error)
                _log.warning("can't %s now, trying again in about %.1f s: %s", job.what, delay_s, error)
            except Exception as error:
                raise StoreError(f"the store failed to {job.what}: {type(error).__name__}: {error}") from error
            else:
                self._problem = ""
                return
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # so that many clients don't come at once
            delay_s = min(2 * delay_s, _LAST_DELAY_S)

    async def _copy(self, stored: StoredCheckpoint) -> None:
        try:
            await self._store.commit(self._run, Checkpoint(stored.directory, stored.manifest))
        except CheckpointError:
            if stored.directory.is_dir() and not await asyncio.to_thread(self._is_damaged, stored):
                raise  # it is whole here, so this is about what the store holds

    def _is_damaged(self, stored: StoredCheckpoint) -> bool:
        """Whether a step's files here are not as its manifest says; then it holds up no other."""
        try:
            verify(stored.directory, stored.manifest)
        except CheckpointError as error:
            _log.error("step %d is damaged here and can't be copied to the store: %s", stored.step, error)
            self.damaged[stored.step] = error
            return True
        return False

    async def _resume(self) -> None:
        if self._halted is None:
            return
        first = self._jobs[0]
        async with self._changed:
            self._halted = None
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._halted is not None or first not in self._jobs)
        if self._halted is not None:
            raise self._halted

    async def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._halted is not None or done())
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self.lag.steps} steps were not copied to the store within {timeout_s:g} s "
                f"({self._problem or 'it is slow'}); they are safe on this machine and copying goes on"
            ) from error
        if self._halted is not None and not done():
            raise self._halted
