"""Start a run from another run's checkpoint: copied whole, verified, committed under the same step number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from art_core.adapter_file import read_adapter_config
from art_core.base_model import base_digest
from art_core.checkpoint import (
    ADAPTER_CONFIG,
    DROPPABLE,
    DROPPED,
    Checkpoint,
    StoredCheckpoint,
    verify,
    write_manifest,
)
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError
from art_core.intake import require_adapter, require_arrays
from art_core.local_store import LocalStore
from art_core.run import RunDirectory, run_path, shape_fields


@dataclass(frozen=True)
class ForkSource:
    """Where a fork comes from."""

    root: Path
    """Directory of all projects."""
    project: str
    run: str
    not_after_step: int | None = None
    """The newest step up to this one; None: the newest of all."""


@dataclass(frozen=True)
class ForkTarget:
    """The run that is started, which must not have any step yet."""

    root: Path
    project: str
    run: str
    base_model: str
    """As the user gives it."""
    resolved_model: str
    """Local directory, or hub name."""
    lora: LoRAConfig


async def fork_checkpoint(store: LocalStore, source: ForkSource, target: ForkTarget) -> StoredCheckpoint:
    """Copy a checkpoint into a new run; the source may be training meanwhile.

    Everything that can be refused is refused before anything is written, and the step appears whole or not at all.

    Args:
        store: Holds both runs.
        source: Which checkpoint.
        target: Which run.

    Returns:
        The new run's first step: same number, files and optimizer state; its manifest's `origin` names the source.

    Raises:
        ConfigError: A name is not a plain one, base model or LoRA shape differ, or the target has steps already.
        CheckpointNotFoundError: The source has no such step.
        CheckpointCorruptError: A file differs from its manifest, is not what its name says, or holds an adapter that
            is not finite or of other shapes than the target's base model needs.
        RunLockedError: Another process holds the target.
        StoreError: The system refuses.
    """
    original = await find_fit(store, source, target)
    run = RunDirectory.create_or_open(target.root, target.project, target.run, target.base_model, target.lora)
    try:
        standing = await store.list(run.path)
        if standing:
            raise ConfigError(
                f"run {target.run!r} has steps already (newest: {standing[-1].step}), so nothing can be forked into "
                f"it; choose another run name"
            )
        async with staged_fork(store, source, original, run) as checkpoint:
            return await store.commit(run.path, checkpoint)
    finally:
        run.close()


async def find_fit(store: LocalStore, source: ForkSource, target: ForkTarget) -> StoredCheckpoint:
    """The checkpoint that is to be forked, with every byte read and found to fit the new run.

    Raises:
        As `fork_checkpoint`, but for what is wrong with the target's directory.
    """
    original = await find_checkpoint(store, source)
    await asyncio.to_thread(_require_same, source, original, target)
    await asyncio.to_thread(_require_fit, original, target)
    return original


@asynccontextmanager
async def staged_fork(
    store: LocalStore, source: ForkSource, original: StoredCheckpoint, run: RunDirectory
) -> AsyncIterator[Checkpoint]:
    """A verified copy under a manifest of the new run, in its directory and to be committed; else it goes.

    Args:
        store: Holds both runs.
        source: Where it comes from.
        original: What `find_fit` found there.
        run: The new run, held by this process.

    Raises:
        CheckpointCorruptError: A file differs from its manifest.
        StoreError: The system refuses.
    """
    directory = run.stage()
    try:
        copy = await store.fetch(original, directory)
        yield await asyncio.to_thread(_rename, copy, source, run.name)
    finally:
        run.discard(directory)


async def find_checkpoint(store: LocalStore, source: ForkSource) -> StoredCheckpoint:
    """The newest whole checkpoint of a run, up to a step.

    Args:
        store: Holds the run.
        source: Which run, and up to which step.

    Raises:
        ConfigError: A name is not a plain one.
        CheckpointNotFoundError: There is none.
    """
    path = run_path(source.root, source.project, source.run)
    stored = await store.list(path)
    limit = source.not_after_step
    found = [each for each in stored if limit is None or each.step <= limit]
    if not found:
        steps = ", ".join(str(each.step) for each in stored) or "none"
        wanted = "no checkpoint" if limit is None else f"no checkpoint up to step {limit}"
        raise CheckpointNotFoundError(f"{path} has {wanted}; its steps: {steps}; name another run, project or path")
    return found[-1]


def made_for(
    source: ForkSource, original: StoredCheckpoint, target_modules: Sequence[str] | None
) -> tuple[str, LoRAConfig]:
    """The base model's name and the adapter's shape that a run was made with.

    Args:
        source: The run. Where it was copied out of a store it has checkpoints alone, and its step says it.
        original: Its step.
        target_modules: Those of the run that is started: a checkpoint does not say which a run was made with.

    Raises:
        CheckpointCorruptError: The step does not say it so that it can be used.
        StoreError: The run's own record is damaged.
    """
    run = RunDirectory(run_path(source.root, source.project, source.run))
    if (run.path / "run.json").exists():
        record = run.record()
        return record.base_model, record.lora
    shape = read_adapter_config(original.directory / ADAPTER_CONFIG)
    return original.manifest.base_model.name, LoRAConfig(shape["r"], shape["lora_alpha"], target_modules)


def _require_same(source: ForkSource, original: StoredCheckpoint, target: ForkTarget) -> None:
    """Refuse another base model or adapter shape; base models are compared by content where the target's is local."""
    named, lora = made_for(source, original, target.lora.target_modules)
    base, directory = ("base model", named, target.base_model), Path(target.resolved_model)
    if directory.is_dir():
        base = ("base model digest", original.manifest.base_model.digest, base_digest(directory))
    for what, before, now in (base, *shape_fields(lora, target.lora)):
        if before != now:
            raise ConfigError(
                f"run {source.run!r} was made with {what} {before!r}, this model has {now!r}; "
                f"give the model the same, or fork another run"
            )


def _require_fit(original: StoredCheckpoint, target: ForkTarget) -> None:
    """Refuse files that differ from the manifest, call themselves safetensors only, or don't fit the target's model."""
    try:
        verify(original.directory, original.manifest)
        require_arrays(Checkpoint(original.directory, original.manifest))
        require_adapter(original.directory, target.resolved_model, target.lora)
    except CheckpointCorruptError as error:
        raise CheckpointCorruptError(
            f"run {original.run!r} step {original.step} can't be forked: {error}; fork another step",
            stage="checkpoint",
        ) from error


def _rename(copy: Checkpoint, source: ForkSource, run: str) -> Checkpoint:
    """The copied files under a manifest of the new run, which never had what the old one has dropped."""
    manifest = copy.manifest
    for name in DROPPABLE:
        (copy.directory / (name + DROPPED)).unlink(missing_ok=True)
    return write_manifest(
        copy.directory,
        run=run,
        step=manifest.step,
        base_model=manifest.base_model,
        origin=f"{source.project}/{source.run}@{manifest.step}",
        updated=manifest.updated,
        metrics=manifest.metrics,
        versions=manifest.versions,
    )
