"""The checkpoints of a run on this machine, as directories beside the run's other files.

A commit is the rename of a staging directory, under a lock that makes exactly one winner. Before it every file, the
manifest and the directory are forced to the disk; after it the parent. So a name without a leading dot under
``checkpoints`` is whole at any instant, and there when `commit` has returned. The path never moves: an engine may read
an adapter's files again at any time.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from art_core import disk, file_record
from art_core.checkpoint import (
    DROPPED,
    MANIFEST,
    OPTIMIZER,
    Checkpoint,
    Manifest,
    StoredCheckpoint,
    check_layout,
    manifest_bytes,
    read_manifest,
)
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, CommitConflictError, StoreError
from art_core.protocols.store import content_key
from art_core.run import RunDirectory

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 4

_log = logging.getLogger("art.store")


class LocalStore:
    """Keeps checkpoints in the run's own directory; `run` is always that directory."""

    async def commit(self, run: Path, checkpoint: Checkpoint) -> StoredCheckpoint:
        """Make a staged checkpoint visible and durable; its staging directory is gone when this returns.

        Raises:
            CommitConflictError: Another checkpoint stands at that step.
            StoreError: Disk full, read-only, permission: names the path; the run is as it was.
        """
        return await in_thread(commit_step, RunDirectory(run), checkpoint)

    async def list(self, run: Path) -> Sequence[StoredCheckpoint]:
        """The whole checkpoints, by rising step. Reads every manifest and every file's size, no other bytes."""
        return await in_thread(list_steps, RunDirectory(run))

    async def fetch(self, stored: StoredCheckpoint, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified.

        Raises:
            CheckpointNotFoundError: It is gone.
            CheckpointCorruptError: A file differs from the manifest; names it.
        """
        return await in_thread(fetch_step, stored, directory)

    async def delete(self, run: Path, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one; a step that is not there is passed over.

        Returns:
            The steps that were deleted.

        Raises:
            StoreError: A step to delete is protected (nothing is deleted), or the system refuses.
        """
        return await in_thread(delete_steps, RunDirectory(run), set(steps), set(protected))

    async def drop_optimizer(self, run: Path, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole.

        Returns:
            The steps that have lost it just now.
        """
        return await in_thread(drop_optimizer, RunDirectory(run), set(steps))


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run blocking work in a thread. A cancelled caller, be it twice, waits for its end: nothing goes on behind it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        work.exception()  # looked at, so that asyncio does not tell of it: whoever cancelled does not want it
        raise


def commit_step(run: RunDirectory, checkpoint: Checkpoint, forced: Collection[str] = ()) -> StoredCheckpoint:
    """`LocalStore.commit`, in this thread.

    Args:
        run: Of which run.
        checkpoint: Staged in its directory.
        forced: The files whose bytes are on the disk already.
    """
    manifest = checkpoint.manifest
    target = run.step_directory(manifest.step)
    with disk.disk_errors(f"commit step {manifest.step}"):
        standing = _whole(target)
        if standing is None:
            check_layout(checkpoint.directory, manifest)
            _sync_files(checkpoint.directory, forced)
            with _alone(run.checkpoints):
                standing = _whole(target) or _show(checkpoint, target)
        if content_key(standing) != content_key(manifest):
            raise CommitConflictError(
                f"another checkpoint stands at {target}; delete step {manifest.step} first, or train from it",
                step=manifest.step,
            )
        disk.sync(run.checkpoints)
        run.discard(checkpoint.directory)
    return StoredCheckpoint(target, standing)


def list_steps(run: RunDirectory) -> list[StoredCheckpoint]:
    """`LocalStore.list`, in this thread."""
    with disk.disk_errors(f"list {run.checkpoints}"):
        if not run.checkpoints.is_dir():
            return []
        shown = [path for path in run.checkpoints.iterdir() if not path.name.startswith(".")]
    found = []
    for path in shown:
        try:
            found.append(read_step(run, path))
        except CheckpointNotFoundError:
            continue  # deleted since the names were read
        except CheckpointCorruptError as error:
            if os.path.lexists(path):
                _log.warning("%s is left out: %s", path, error)
    return sorted(found, key=lambda stored: stored.step)


def read_step(run: RunDirectory, place: Path) -> StoredCheckpoint:
    """What stands at a place in ``checkpoints``, if it is whole and the place is its step's; never through a link.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        CheckpointCorruptError: It is not whole, or of another step.
    """
    if not os.path.lexists(place):
        raise CheckpointNotFoundError(f"run {run.name!r} has no checkpoint at {place}; list the run's steps")
    if place.is_symlink() or not place.is_dir():
        raise CheckpointCorruptError(f"{place} is a file or a link, not a directory; remove it")
    manifest = read_manifest(place)
    if place != run.step_directory(manifest.step):
        raise file_record.corrupt(place / MANIFEST, f"is of step {manifest.step}")
    check_layout(place, manifest)
    return StoredCheckpoint(place, manifest)


def fetch_step(stored: StoredCheckpoint, directory: Path) -> Checkpoint:
    """`LocalStore.fetch`, in this thread."""
    with disk.disk_errors(f"fetch step {stored.step}"):
        if not stored.directory.is_dir():
            raise CheckpointNotFoundError(
                f"step {stored.step} of run {stored.run!r} is no longer at {stored.directory}; list the run again",
                step=stored.step,
            )
        make_empty(directory)
        return copy_checkpoint(Checkpoint(stored.directory, stored.manifest), directory)


def make_empty(directory: Path) -> None:
    """Make a directory that checkpoints are fetched into.

    Raises:
        StoreError: Something is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise StoreError(f"can't fetch a checkpoint into {directory}: it is not empty; name an empty one")


def copy_checkpoint(source: Checkpoint, directory: Path) -> Checkpoint:
    """Copy a checkpoint's files, each forced to the disk and hashed, and its manifest, which a commit forces.

    Args:
        source: The checkpoint; its manifest must be what stands in its directory.
        directory: Empty.

    Raises:
        CheckpointCorruptError: A file is missing, extra, or differs from the manifest; it is named.
    """
    manifest = source.manifest
    if read_manifest(source.directory) != manifest:
        raise file_record.corrupt(source.directory / MANIFEST, "is not the one that was listed")
    names = check_layout(source.directory, manifest)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="art-copy") as threads:
        copied = threads.map(lambda name: file_record.copy(source.directory / name, directory / name), names)
        for name, seen in zip(names, copied, strict=True):
            if seen != manifest.files[name]:
                raise file_record.differs(source.directory / name, seen, manifest.files[name])
    for name in manifest.files.keys() - set(names):
        disk.write(directory / (name + DROPPED), b"")
    disk.write(directory / MANIFEST, manifest_bytes(manifest))
    return Checkpoint(directory, manifest)


def delete_steps(run: RunDirectory, steps: set[int], protected: set[int]) -> list[int]:
    """`LocalStore.delete`, in this thread."""
    require_unprotected(steps, protected)
    present = [step for step in sorted(steps) if run.step_directory(step).exists()]
    for step in present:
        with disk.disk_errors(f"delete step {step}"):
            run.discard(run.step_directory(step))
    return present


def require_unprotected(steps: Collection[int], protected: Collection[int]) -> None:
    """Refuse to delete what must stay.

    Raises:
        StoreError: A step is protected; all such steps are named.
    """
    if clash := sorted(set(steps) & set(protected)):
        raise StoreError(f"steps {clash} are served, leased or the newest and can't be deleted; nothing was deleted")


def drop_optimizer(run: RunDirectory, steps: set[int]) -> list[int]:
    """`LocalStore.drop_optimizer`, in this thread."""
    done = []
    for step in sorted(steps):
        directory = run.step_directory(step)
        with disk.disk_errors(f"drop the optimizer state of step {step}"):
            if (directory / OPTIMIZER).exists() and _whole(directory):
                marker = directory / (OPTIMIZER + DROPPED)
                disk.write(marker, b"")
                disk.sync(marker)
                disk.sync(directory)
                (directory / OPTIMIZER).unlink()
                disk.sync(directory)
                done.append(step)
    return done


def _whole(target: Path) -> Manifest | None:
    """The manifest of what stands at a step already; None where nothing does, or it is not whole."""
    if not target.exists():
        return None
    try:
        manifest = read_manifest(target)
        check_layout(target, manifest)
    except CheckpointCorruptError as error:
        _log.warning("%s is not whole: %s", target, error)
        return None
    return manifest


def _show(checkpoint: Checkpoint, target: Path) -> Manifest:
    """Rename the staged directory into place; what stands there and is not whole is kept beside it."""
    if target.exists():
        os.rename(target, target.with_name(f".damaged-{target.name}-{uuid.uuid4().hex[:8]}"))  # noqa: PTH104
    os.rename(checkpoint.directory, target)  # noqa: PTH104 - refuses a target that another process has just made
    return checkpoint.manifest


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes from judging, or replacing, what stands at a step until this one has."""
    with disk.opened(directory, os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing would not do where a fork holds a copy


def _sync_files(directory: Path, forced: Collection[str]) -> None:
    """Force the rest of a staged directory to the disk, side by side: nobody looks at it before it is renamed."""
    rest = [path for path in directory.iterdir() if path.name not in forced]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="art-sync") as threads:
        for _ in threads.map(disk.sync, [*rest, directory]):
            pass
