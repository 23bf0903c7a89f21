"""Checkpoints between a run's directory and a store, as people ask for it: pushed, pulled, and fetched for a fork."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from art_core import disk
from art_core.adapter_file import read_adapter_config
from art_core.base_model import UNKNOWN_DIGEST, BaseIdentity, base_digest
from art_core.checkpoint import ADAPTER_CONFIG, Checkpoint, StoredCheckpoint, write_manifest
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, CommitConflictError, nearest
from art_core.file_record import copy
from art_core.foreign_run import FILES, foreign_step, foreign_steps, refuse_foreign, torn
from art_core.fork import ForkSource, ForkTarget
from art_core.intake import require_arrays
from art_core.local_store import LocalStore, in_thread, make_empty
from art_core.protocols.store import CheckpointStore, StoreEntry, content_key
from art_core.run import RunDirectory, run_path
from art_core.run_key import RunKey

_log = logging.getLogger("art.store")

Told = Callable[[int, bool], None]
"""Called after each step with its number, and whether anything was copied (False: it was there already)."""


def _nobody(step: int, copied: bool) -> None:
    """Tell nobody."""


async def push(
    store: CheckpointStore, run: RunKey, path: Path, steps: Collection[int] | None = None, told: Told = _nobody
) -> list[int]:
    """Copy a run's steps into a store; what it holds already is left alone.

    Args:
        store: Where to.
        run: The run as the store shall know it.
        path: The run's directory; it may be training meanwhile.
        steps: Which; None: all.
        told: Told of each step.

    Returns:
        The steps that were copied.

    Raises:
        CheckpointNotFoundError: A step is not here.
        CommitConflictError: The store holds another checkpoint under a number.
        StoreError: The store refuses.
    """
    stored = {each.step: each for each in await LocalStore().list(path)}
    wanted = sorted(stored if steps is None else steps)
    if missing := [step for step in wanted if step not in stored]:
        raise CheckpointNotFoundError(f"{path} has no steps {missing}; its steps: {_numbers(stored)}")
    held = {each.step: each.manifest for each in await store.list(run)}
    copied = []
    for step in wanted:
        new = step not in held or content_key(held[step]) != content_key(stored[step].manifest)
        if new:
            await store.commit(run, Checkpoint(stored[step].directory, stored[step].manifest))
            copied.append(step)
        told(step, new)
    return copied


Comes = Callable[[StoreEntry, Path], None]
"""Called before a step is copied, with the directory where its files come to be."""


def _unwatched(entry: StoreEntry, directory: Path) -> None:
    """Tell nobody."""


async def pull(
    store: CheckpointStore, run: RunKey, step: int | None, root: Path, comes: Comes = _unwatched
) -> StoredCheckpoint:
    """Copy a step out of a store into the run's own directory, verified.

    Args:
        store: Where from.
        run: Which run.
        step: None: the newest.
        root: Directory of all projects.
        comes: Told where the copy comes to be.

    Raises:
        CheckpointNotFoundError: The store has no such step.
        ConfigError: Another backend's run stands there.
        CheckpointCorruptError: A file differs from the manifest, is no array file, or not finite.
        CommitConflictError: Another checkpoint stands at that step here.
        StoreError: The store or the system refuses.
    """
    entry = await find(store, run, step)
    directory = RunDirectory(run_path(root, run.project, run.run))
    refuse_foreign(directory.path)
    for each in await LocalStore().list(directory.path):
        if each.step == entry.step:
            if content_key(each.manifest) != content_key(entry.manifest):
                raise CommitConflictError(
                    f"another checkpoint stands at {each.directory}; pull into another root, or into a directory",
                    step=each.step,
                )
            return each
    staged = directory.stage()
    try:
        comes(entry, staged)
        checkpoint = await store.fetch(run, entry.step, staged)
        await asyncio.to_thread(require_arrays, checkpoint)
        return await LocalStore().commit(directory.path, checkpoint)
    finally:
        directory.discard(staged)


async def pull_copy(
    store: CheckpointStore, run: RunKey, step: int | None, directory: Path, comes: Comes = _unwatched
) -> Path:
    """Copy a step out of a store into a directory of one's own, verified; where that fails nothing is left in it.

    Args:
        store: Where from.
        run: Which run.
        step: None: the newest.
        directory: Made if absent; must be empty.
        comes: Told where the copy comes to be.

    Returns:
        The directory.

    Raises:
        CheckpointNotFoundError: The store has no such step.
        CheckpointCorruptError: A file differs from the manifest, is no array file, or not finite.
        StoreError: The store or the system refuses, or the directory is not empty.
    """
    entry = await find(store, run, step)
    with disk.disk_errors(f"fetch step {entry.step}"):
        await asyncio.to_thread(make_empty, directory)
    try:
        comes(entry, directory)
        await asyncio.to_thread(require_arrays, await store.fetch(run, entry.step, directory))
    except BaseException:
        await in_thread(_empty, directory)
        raise
    return directory


def _empty(directory: Path) -> None:
    with disk.disk_errors(f"remove what was fetched into {directory}"):
        for path in directory.iterdir():
            disk.remove(path)


async def held(store: CheckpointStore, run: RunKey) -> Sequence[StoreEntry]:
    """The steps of a run that a store holds, by rising step.

    Args:
        store: Which store.
        run: Which run.

    Raises:
        CheckpointNotFoundError: It holds none; the nearest run that it holds is suggested.
    """
    found = await store.list(run)
    if not found:
        others = [str(each) for each in await store.runs() if each != run]
        raise CheckpointNotFoundError(f"the store has no checkpoint of run {run}; {nearest(str(run), others)}")
    return found


async def find(store: CheckpointStore, run: RunKey, step: int | None, up_to: int | None = None) -> StoreEntry:
    """A step that a store holds.

    Args:
        store: Which store.
        run: Which run.
        step: None: the newest.
        up_to: The newest up to this one.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    entries = await held(store, run)
    found = [each for each in entries if step in (None, each.step) and (up_to is None or each.step <= up_to)]
    if not found:
        what = f"step up to {up_to}" if step is None else f"step {step}"
        steps = _numbers([each.step for each in entries])
        raise CheckpointNotFoundError(f"the store has no {what} of run {run}; its steps: {steps}", step=step)
    return found[-1]


@asynccontextmanager
async def fetched_source(
    store: CheckpointStore, source: ForkSource, target_modules: Sequence[str] | None, comes: Comes = _unwatched
) -> AsyncIterator[ForkSource]:
    """What is to be forked, fetched from a store into a run that is gone after the block.

    Args:
        store: Where from.
        source: Which run, and up to which step; its root does not count.
        target_modules: Those of the run that is started: a checkpoint does not say which a run was made with.
        comes: Told where the copy comes to be.

    Raises:
        CheckpointNotFoundError: The store has no such step.
        CheckpointCorruptError: A file is not what its manifest says.
        StoreError: The store or the system refuses.
    """
    run = RunKey(source.project, source.run)
    entry = await find(store, run, None, source.not_after_step)
    with tempfile.TemporaryDirectory(prefix="art-fork-") as scratch:
        comes(entry, Path(scratch) / "fetched")
        fetched = await store.fetch(run, entry.step, Path(scratch) / "fetched")
        yield await _scratch_run(fetched, replace(source, root=Path(scratch)), target_modules)


@asynccontextmanager
async def adopted_source(source: ForkSource, target: ForkTarget) -> AsyncIterator[ForkSource]:
    """What is to be forked of another backend's run, as a run of ours that is gone after the block.

    The other run's files are read, never changed. What nobody can verify of them is logged as a warning.

    Args:
        source: A run that has `foreign_steps`.
        target: Which run is started.

    Raises:
        CheckpointNotFoundError: There is no step up to that one.
        CheckpointCorruptError: A file is missing, or its adapter is of a kind that can't be served.
        StoreError: The system refuses.
    """
    run = run_path(source.root, source.project, source.run)
    steps = foreign_steps(run)
    found = [step for step in steps if source.not_after_step is None or step <= source.not_after_step]
    if not found:
        raise CheckpointNotFoundError(f"{run} has no step up to {source.not_after_step}; its steps: {_numbers(steps)}")
    with tempfile.TemporaryDirectory(prefix="art-fork-") as scratch:
        adopted = await asyncio.to_thread(_adopt, run, found[-1], target, Path(scratch) / "adopted")
        yield await _scratch_run(adopted, replace(source, root=Path(scratch)), target.lora.target_modules)


def _adopt(run: Path, step: int, target: ForkTarget, directory: Path) -> Checkpoint:
    """A foreign step's files under a manifest; what nobody can verify is said."""
    directory.mkdir()
    try:
        for name in FILES:
            copy(foreign_step(run, step) / name, directory / name)
        named, base = read_adapter_config(directory / ADAPTER_CONFIG), Path(target.resolved_model)
    except CheckpointCorruptError as error:
        raise torn(run, step, error) from error
    _log.warning(
        "step %d of %s was written by openpipe-art's own backend; it is refused unless it is whole, finite and of "
        "the base model's shapes. What can't be verified: that its files are as they were written, for they have no "
        "digests, and that its base model, %r, is this one, %r. Its optimizer's state was not kept and begins afresh",
        step,
        run,
        named.get("base_model_name_or_path"),
        target.base_model,
    )
    identity = BaseIdentity(name=target.base_model, digest=base_digest(base) if base.is_dir() else UNKNOWN_DIGEST)
    return write_manifest(directory, run=run.name, step=step, base_model=identity)


async def _scratch_run(fetched: Checkpoint, source: ForkSource, target_modules: Sequence[str] | None) -> ForkSource:
    """A run of ours around files from elsewhere."""
    shape = read_adapter_config(fetched.directory / ADAPTER_CONFIG)
    lora = LoRAConfig(rank=shape["r"], alpha=shape["lora_alpha"], target_modules=target_modules)
    run = RunDirectory.create_or_open(source.root, source.project, source.run, fetched.manifest.base_model.name, lora)
    try:
        staged = run.stage()
        staged.rmdir()
        fetched.directory.rename(staged)
        await LocalStore().commit(run.path, Checkpoint(staged, fetched.manifest))
    finally:
        run.close()
    return replace(source, not_after_step=fetched.manifest.step)


def _numbers(steps: Collection[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
