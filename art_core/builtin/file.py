"""The `file` store: checkpoints as directories beside the run's other files.

A commit is the rename of a staging directory, under a lock that makes exactly one winner. Before it every file is
forced to the disk, then the manifest, then the directory; after it the parent. So a name without a leading dot under
``checkpoints`` is whole at any instant, and there when `commit` has returned.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

from art_core import disk
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import (
    MANIFEST,
    Checkpoint,
    Manifest,
    StoredCheckpoint,
    check_layout,
    manifest_bytes,
    read_manifest,
    verify,
)
from art_core.config import PartOptions
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, CommitConflictError, StoreError
from art_core.hookspecs import hookimpl
from art_core.part import StorePart
from art_core.run import RunDirectory

P = ParamSpec("P")
R = TypeVar("R")

_SYNC_THREADS = 4

_log = logging.getLogger("art.store")


class FileStoreOptions(PartOptions):
    """The file store has no options: where it writes is the run's directory."""

    part: ClassVar[str] = "file"


class FileStore:
    """Keeps checkpoints in the run's own directory; see `art_core.protocols.store`."""

    async def commit(self, run: Path, checkpoint: Checkpoint) -> StoredCheckpoint:
        """Make a staged checkpoint visible and durable; its staging directory is gone when this returns."""
        return await _in_thread(_commit, RunDirectory(run), checkpoint)

    async def list(self, run: Path) -> Sequence[StoredCheckpoint]:
        """The whole checkpoints, by rising step. Reads every manifest and every file's size, no other bytes."""
        return await _in_thread(_list, RunDirectory(run))

    async def fetch(self, stored: StoredCheckpoint, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified."""
        return await _in_thread(_fetch, stored, directory)

    async def delete(self, run: Path, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one; a step that is not there is passed over."""
        return await _in_thread(_delete, RunDirectory(run), set(steps), set(protected))


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the file store."""
    register(
        StorePart(
            name="file",
            options=FileStoreOptions,
            capabilities=Capabilities({Capability.CREATE_IF_ABSENT: FULL}),
            create=lambda options: FileStore(),
        )
    )


async def _in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run blocking work in a thread. A cancelled caller waits for its end, so nothing goes on behind its back."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def _commit(run: RunDirectory, checkpoint: Checkpoint) -> StoredCheckpoint:
    manifest = checkpoint.manifest
    target = run.step_directory(manifest.step)
    with disk.disk_errors(f"commit step {manifest.step}"):
        standing = _whole(target)
        if standing is None:
            check_layout(checkpoint.directory, manifest)
            _sync_files(checkpoint)
            with _alone(run.checkpoints):
                standing = _whole(target) or _show(checkpoint, target)
        if _content(standing) != _content(manifest):
            raise CommitConflictError(
                f"another checkpoint stands at {target}; delete step {manifest.step} first, or train from it",
                step=manifest.step,
            )
        disk.sync(run.checkpoints)
        run.discard(checkpoint.directory)
    return StoredCheckpoint(target, standing)


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


def _content(manifest: Manifest) -> object:
    """What two commits of one step must agree on; metrics hold durations, which never agree."""
    return manifest.model_dump(exclude={"metrics", "versions"})


def _sync_files(checkpoint: Checkpoint) -> None:
    directory = checkpoint.directory
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="art-sync") as threads:
        for _ in threads.map(disk.sync, [directory / name for name in checkpoint.manifest.files]):
            pass
    disk.sync(directory / MANIFEST)
    disk.sync(directory)


def _list(run: RunDirectory) -> list[StoredCheckpoint]:
    with disk.disk_errors(f"list {run.checkpoints}"):
        if not run.checkpoints.is_dir():
            return []
        with os.scandir(run.checkpoints) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    found = []
    for entry in shown:
        try:
            found.append(_read(run, Path(entry.path), is_directory=entry.is_dir(follow_symlinks=False)))
        except CheckpointCorruptError as error:
            _log.warning("%s is left out: %s", entry.path, error)
    return sorted(found, key=lambda stored: stored.step)


def _read(run: RunDirectory, directory: Path, *, is_directory: bool) -> StoredCheckpoint:
    """What stands at a place, if it is whole and that step's place; never through a link."""
    if not is_directory:
        raise CheckpointCorruptError("it is a file or a link, not a directory")
    manifest = read_manifest(directory)
    if directory != run.step_directory(manifest.step):
        raise CheckpointCorruptError(f"its manifest is of step {manifest.step}")
    check_layout(directory, manifest)
    return StoredCheckpoint(directory, manifest)


def _fetch(stored: StoredCheckpoint, directory: Path) -> Checkpoint:
    with disk.disk_errors(f"fetch step {stored.step}"):
        if not stored.directory.is_dir():
            raise CheckpointNotFoundError(
                f"step {stored.step} of run {stored.run!r} is no longer at {stored.directory}; list the run again",
                step=stored.step,
            )
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise StoreError(f"can't fetch step {stored.step} into {directory}: it is not empty; name an empty one")
        check_layout(stored.directory, stored.manifest)
        for name in stored.manifest.files:
            shutil.copyfile(stored.directory / name, directory / name, follow_symlinks=False)
        disk.write(directory / MANIFEST, manifest_bytes(stored.manifest))
        return Checkpoint(directory, verify(directory, stored.manifest))


def _delete(run: RunDirectory, steps: set[int], protected: set[int]) -> list[int]:
    if clash := sorted(steps & protected):
        raise StoreError(f"steps {clash} are served or leased and can't be deleted; nothing was deleted")
    present = [step for step in sorted(steps) if run.step_directory(step).exists()]
    for step in present:
        with disk.disk_errors(f"delete step {step}"):
            run.discard(run.step_directory(step))
    return present
