"""Checkpoints between a run's directory and a store, as people ask for it: pushed, pulled, and fetched for a fork."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

from art_core.adapter_file import read_adapter_config
from art_core.checkpoint import ADAPTER_CONFIG, Checkpoint, StoredCheckpoint
from art_core.config import LoRAConfig
from art_core.errors import CheckpointNotFoundError, CommitConflictError
from art_core.fork import ForkSource, ForkTarget, fork_checkpoint
from art_core.intake import require_arrays
from art_core.local_store import LocalStore
from art_core.protocols.store import CheckpointStore, StoreEntry, content_key
from art_core.run import RunDirectory, run_path
from art_core.run_key import RunKey

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


async def pull(store: CheckpointStore, run: RunKey, step: int | None, root: Path) -> StoredCheckpoint:
    """Copy a step out of a store into the run's own directory, verified.

    Args:
        store: Where from.
        run: Which run.
        step: None: the newest.
        root: Directory of all projects.

    Raises:
        CheckpointNotFoundError: The store has no such step.
        CheckpointCorruptError: A file differs from the manifest, is no array file, or not finite.
        CommitConflictError: Another checkpoint stands at that step here.
        StoreError: The store or the system refuses.
    """
    entry = await find(store, run, step)
    directory = RunDirectory(run_path(root, run.project, run.run))
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
        checkpoint = await store.fetch(run, entry.step, staged)
        await asyncio.to_thread(require_arrays, checkpoint)
        return await LocalStore().commit(directory.path, checkpoint)
    finally:
        directory.discard(staged)


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
    entries = await store.list(run)
    found = [each for each in entries if step in (None, each.step) and (up_to is None or each.step <= up_to)]
    if not found:
        what = "checkpoint" if step is None and up_to is None else f"step {up_to if step is None else step}"
        steps = _numbers([each.step for each in entries])
        raise CheckpointNotFoundError(f"the store has no {what} of run {run}; its steps: {steps}", step=step)
    return found[-1]


async def fork_from_store(
    store: CheckpointStore, run: RunKey, up_to: int | None, target: ForkTarget, scratch: Path
) -> StoredCheckpoint:
    """Start a run from a step that a store holds; see `art_core.fork.fork_checkpoint`.

    Args:
        store: Where from.
        run: The run that is forked.
        up_to: Its newest step up to this one; None: the newest.
        target: Which run is started.
        scratch: An empty directory; what is fetched stays there.

    Raises:
        ConfigError: Base model or LoRA shape differ, or the target has steps already.
        CheckpointNotFoundError: The store has no such step.
        CheckpointCorruptError: A file is not what its manifest or its name says.
        StoreError: The store or the system refuses.
    """
    entry = await find(store, run, None, up_to)
    fetched = await store.fetch(run, entry.step, scratch / "fetched")
    shape = read_adapter_config(fetched.directory / ADAPTER_CONFIG)
    lora = LoRAConfig(rank=shape["r"], alpha=shape["lora_alpha"], target_modules=target.lora.target_modules)
    source = RunDirectory.create_or_open(scratch, run.project, run.run, entry.manifest.base_model.name, lora)
    try:
        staged = source.stage()
        staged.rmdir()
        fetched.directory.rename(staged)
        await LocalStore().commit(source.path, Checkpoint(staged, fetched.manifest))
    finally:
        source.close()
    return await fork_checkpoint(LocalStore(), ForkSource(scratch, run.project, run.run, entry.step), target)


def _numbers(steps: Collection[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
