"""Copies of checkpoints on another file system, in the same layout as a root of runs.

So the place it copies to can be given as a backend's ``path`` just as it is. A copy is written beside its place, forced
to the disk, hashed meanwhile, and renamed once, as a run's own steps are (`art_core.local_store`). The directory's lock
makes one winner among any number of committers, on every file system whose locks work across those who mount it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from art_core import disk
from art_core.checkpoint import MANIFEST, Checkpoint, StoredCheckpoint, check_layout
from art_core.errors import CheckpointCorruptError, CheckpointError, StoreError, StoreUnavailableError
from art_core.file_record import corrupt
from art_core.local_store import (
    commit_step,
    copy_checkpoint,
    delete_steps,
    drop_optimizer,
    fetch_step,
    in_thread,
    list_steps,
    read_step,
)
from art_core.protocols.store import StoreEntry
from art_core.run import LEFTOVERS, RunDirectory, run_path
from art_core.run_key import RunKey, plain_keys

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("art.store")


class FileStore:
    """Keeps copies below a directory; see `art_core.protocols.store`.

    Args:
        root: Directory of all projects; made by `check`, or the first commit, and never again.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = False

    async def check(self) -> None:
        """Make sure that the directory is there, or can be made, and can be written."""
        await in_thread(self._check)

    async def runs(self) -> Sequence[RunKey]:
        """The runs below the directory, sorted."""
        return await self._do(self._runs)

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        """Copy a checkpoint in, and make it visible and durable."""
        if not self._seen:
            await self.check()
        return await self._do(self._commit, self._directory(run), checkpoint)

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        """The whole checkpoints of a run, by rising step."""
        stored = await self._do(list_steps, self._directory(run))
        strange = [each for each in stored if each.run != run.run]
        for each in strange:
            _log.warning("%s is left out: it is of run %r", each.directory, each.run)
        return await in_thread(_entries, [each for each in stored if each not in strange])

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified."""
        return await self._do(self._fetch, self._directory(run), step, directory)

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one."""
        return await self._do(delete_steps, self._directory(run), set(steps), set(protected))

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole."""
        return await self._do(drop_optimizer, self._directory(run), set(steps))

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """Remove the staging directories and the half-deleted steps of calls that were cut short."""
        return await self._do(self._sweep, self._directory(run), older_than_s)

    async def _do(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Work below the root, which must be there: a share that is not mounted is no empty store.

        Raises:
            StoreUnavailableError: The root is not there.
        """

        def guarded() -> R:
            self._require_root()
            try:
                return work(*args, **kwargs)
            except (CheckpointError, StoreError):
                self._require_root()  # what has gone meanwhile is why
                raise

        return await in_thread(guarded)

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise StoreUnavailableError(f"there is no directory {self._root}; is it mounted, and the path right?")

    def _directory(self, run: RunKey) -> RunDirectory:
        return RunDirectory(run_path(self._root, run.project, run.run))

    def _check(self) -> None:
        with disk.disk_errors(f"use {self._root} as a store"):
            disk.make_directory(self._root)
            probe = self._root / ".art-probe"  # one name: what a kill leaves goes with the next
            disk.write(probe, b"")
            probe.unlink(missing_ok=True)  # others may be making sure, too
        self._seen = True

    def _runs(self) -> Sequence[RunKey]:
        with disk.disk_errors(f"read {self._root}"):
            steps = [each for each in self._root.glob("*/models/*/checkpoints/*") if not each.name.startswith(".")]
        return plain_keys((step.parents[3].name, step.parents[1].name) for step in steps)

    def _commit(self, run: RunDirectory, checkpoint: Checkpoint) -> StoreEntry:
        with disk.disk_errors(f"copy step {checkpoint.manifest.step} to {run.checkpoints}"):
            disk.make_directory(run.checkpoints)
            staged = run.stage()
            try:
                return _entry(commit_step(run, copy_checkpoint(checkpoint, staged), checkpoint.manifest.files))
            finally:
                run.discard(staged)

    def _fetch(self, run: RunDirectory, step: int, directory: Path) -> Checkpoint:
        stored = read_step(run, run.step_directory(step))
        if stored.run != run.name:
            raise corrupt(stored.directory / MANIFEST, f"is of run {stored.run!r}")
        return fetch_step(stored, directory)

    def _sweep(self, run: RunDirectory, older_than_s: float) -> int:
        with disk.disk_errors(f"sweep {run.checkpoints}"):
            if not run.checkpoints.is_dir():
                return 0
            clock = run.stage()  # the file system's own clock, which need not be this machine's
            oldest = clock.stat().st_mtime - older_than_s
            left = [path for path in run.checkpoints.iterdir() if path.name.startswith(LEFTOVERS) and path != clock]
            old = [path for path in left if _untouched_since(path, oldest)]
            for path in (*old, clock):
                disk.remove(path)
            return len(old)


def _entries(stored: Iterable[StoredCheckpoint]) -> list[StoreEntry]:
    """What is still there of steps that were listed just now."""
    found = []
    for each in stored:
        try:
            found.append(_entry(each))
        except CheckpointCorruptError as error:
            if each.directory.exists():
                _log.warning("%s is left out: %s", each.directory, error)
    return found


def _entry(stored: StoredCheckpoint) -> StoreEntry:
    there = check_layout(stored.directory, stored.manifest)
    return StoreEntry(stored.manifest, frozenset(stored.manifest.files.keys() - set(there)))


def _untouched_since(path: Path, oldest: float) -> bool:
    """Whether nothing in a directory was written since, by the file system's clock."""
    try:
        return all(each.stat(follow_symlinks=False).st_mtime <= oldest for each in (path, *path.iterdir()))
    except FileNotFoundError:  # a live call has just renamed or removed it
        return False
