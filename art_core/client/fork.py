"""Checkpoints as users ask for them: forked into a new model, or pulled out of a run."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypedDict

from art_core.checkpoint import StoredCheckpoint
from art_core.client.config import lora_config
from art_core.client.keyword import check_keywords
from art_core.client.model import Model
from art_core.client.trainable import TrainableModel
from art_core.config import Environment
from art_core.errors import CheckpointNotFoundError, ConfigError
from art_core.foreign_run import foreign_steps
from art_core.fork import ForkSource, ForkTarget, find_checkpoint
from art_core.local_store import LocalStore
from art_core.model_source import resolve_base_model
from art_core.protocols.store import CheckpointStore
from art_core.run import run_path
from art_core.run_key import RunKey
from art_core.transfer import adopted_source, fetched_source, pull, pull_copy, push


class ForkArgs(TypedDict, total=False):
    """Keywords of `_experimental_fork_checkpoint`."""

    from_project: str | None
    """Project of the model that is forked; the new model's own unless given."""
    from_path: str | Path | None
    """Root of all runs that holds it; the backend's own unless given."""
    not_after_step: int | None
    """The newest step up to this one; None: the newest of all."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    from_s3_bucket: str | None
    """Bucket that holds it, instead of a directory."""
    prefix: str | None
    """What the bucket's keys begin with."""


class PushArgs(TypedDict, total=False):
    """Keywords of `_experimental_push_to_s3`."""

    s3_bucket: str | None
    """None: the store that the backend copies to."""
    prefix: str | None
    """What the bucket's keys begin with."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    delete: bool
    """Delete there what is not here any more; the newest step there always stays."""


class PullArgs(TypedDict, total=False):
    """Keywords of `_experimental_pull_model_checkpoint`."""

    step: int | Literal["latest"] | None
    """None is the latest too."""
    local_path: str | Path | None
    """An empty directory for a copy; None: the path where the checkpoint stands is returned."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    s3_bucket: str | None
    """Bucket that holds it; None: the run's directory, else the store that the backend copies to."""
    prefix: str | None
    """What the bucket's keys begin with."""


class PullRunArgs(TypedDict, total=False):
    """Keywords of `_experimental_pull_from_s3`."""

    s3_bucket: str | None
    """None: the store that the backend copies to."""
    prefix: str | None
    """What the bucket's keys begin with."""
    only_step: int | Literal["latest"] | None
    """None: every step."""
    step: int | None
    """Older name of `only_step`."""
    latest_only: bool
    """Older form of ``only_step="latest"``."""
    exclude: Sequence[str] | None
    """With ``"checkpoints"`` among them nothing is pulled: a bucket holds nothing else of ours."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    delete: bool
    """Delete here what is not there any more; the newest step here always stays."""


Bucket = Callable[[str, str], CheckpointStore]
"""Makes the store of a bucket and a prefix."""


OwnStore = Callable[[], CheckpointStore | None]
"""Makes the backend's own store; None where it copies nowhere."""


Fork = Callable[[ForkSource, ForkTarget], Awaitable[object]]
"""Puts a run's checkpoint into another run."""


def step_number(name: str, value: object) -> int:
    """A step's number.

    Args:
        name: The keyword that it was given as.
        value: What was given.

    Raises:
        ConfigError: It is no whole number from 0.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool) and (number := operator.index(value)) >= 0:
        return number
    raise ConfigError(f"{name} is {value!r}; allowed: 0 or more, as a whole number")


def require_bucket(name: str, bucket: str | None, prefix: str | None) -> None:
    """Refuse a prefix of the keys of no bucket, which would have no effect.

    Args:
        name: The keyword that names the bucket.
        bucket: As given.
        prefix: As given.

    Raises:
        ConfigError: There is a prefix, and no bucket.
    """
    if prefix and not bucket:
        raise ConfigError(f"prefix is {prefix!r}, which belongs to a bucket; give {name} as well, or leave it out")


async def fork_model(
    root: Path, bucket: Bucket, model: TrainableModel[Any], from_model: str, options: ForkArgs, fork: Fork
) -> None:
    """Copy a checkpoint of another model into a new one.

    Args:
        root: The backend's root of all runs.
        bucket: Makes the store of a bucket that was named.
        model: The new model.
        from_model: Run name of the one that is forked.
        options: As given.
        fork: `art_core.fork.fork_checkpoint`, or its like for a model that is registered already.

    Raises:
        ConfigError: A keyword is unknown, the step below 0, or the two models don't fit together.
        StoreError: There is no such checkpoint, or the system refuses.
    """
    check_keywords("_experimental_fork_checkpoint", options, ForkArgs.__annotations__, ())
    limit = options.get("not_after_step")
    step = None if limit is None else step_number("not_after_step", limit)
    require_bucket("from_s3_bucket", options.get("from_s3_bucket"), options.get("prefix"))
    project, path = options.get("from_project") or model.project, Path(options.get("from_path") or root)
    base = await resolve_base_model(model.base_model, Environment.read().cache)
    lora = lora_config(model.lora_config)
    target = ForkTarget(root, model.project, model.run_name, model.base_model, base, lora)
    source = ForkSource(path, project, from_model, step)
    if name := options.get("from_s3_bucket"):
        async with fetched_source(bucket(name, options.get("prefix") or ""), source, lora.target_modules) as fetched:
            await fork(fetched, target)
    elif foreign_steps(run_path(path, project, from_model)):
        async with adopted_source(source, target) as adopted:
            await fork(adopted, target)
    else:
        await fork(source, target)


async def push_model(root: Path, store: CheckpointStore, model: Model[Any], options: PushArgs) -> None:
    """Copy every step of a model into a store; what it holds already is left alone.

    Args:
        root: The backend's root of all runs.
        store: Where to.
        model: Registered or not.
        options: As given.

    Raises:
        ConfigError: A keyword is unknown.
        StoreError: The store refuses, or holds other steps under the same numbers.
    """
    run, path = RunKey(model.project, model.run_name), run_path(root, model.project, model.run_name)
    await store.check()
    await push(store, run, path)
    if options.get("delete"):
        here = {each.step for each in await LocalStore().list(path)}
        there = [each.step for each in await store.list(run)]
        await store.delete(run, set(there[:-1]) - here, there[-1:])


async def pull_run(root: Path, store: CheckpointStore, model: Model[Any], options: PullRunArgs) -> None:
    """Copy the steps of a model out of a store into its run's directory, each verified.

    Args:
        root: The backend's root of all runs.
        store: Where from.
        model: Registered or not.
        options: As given.

    Raises:
        ConfigError: Two steps were named.
        StoreError: There is no such checkpoint, the store or the system refuses, or another checkpoint stands here
            under the same number.
    """
    given = options.get("only_step"), options.get("step"), "latest" if options.get("latest_only") else None
    named = {each if each == "latest" else step_number("step", each) for each in given if each is not None}
    if len(named) > 1:
        raise ConfigError(f"only_step, step and latest_only name {sorted(map(str, named))}; allowed: one step, or none")
    if "checkpoints" in (options.get("exclude") or ()):
        return
    run, path = RunKey(model.project, model.run_name), run_path(root, model.project, model.run_name)
    held = [each.step for each in await store.list(run)]
    steps: Sequence[int | None] = [None if each == "latest" else int(each) for each in named] or held or [None]
    for step in steps:
        await pull(store, run, step, root)
    if options.get("delete"):
        here = [each.step for each in await LocalStore().list(path)]
        await LocalStore().delete(path, set(here[:-1]) - set(held), here[-1:])


async def pull_model(root: Path, bucket: Bucket, own: OwnStore, model: Model[Any], options: PullArgs) -> Path:
    """Where a checkpoint of a model stands, or a verified copy of it.

    Args:
        root: The backend's root of all runs.
        bucket: Makes the store of a bucket that was named.
        own: Makes the store that the backend copies to: it has what is not here.
        model: Registered or not.
        options: As given.

    Raises:
        ConfigError: A keyword is unknown.
        StoreError: There is no such checkpoint, or the system refuses.
    """
    check_keywords("_experimental_pull_model_checkpoint", options, PullArgs.__annotations__, ())
    wanted, copy = options.get("step"), options.get("local_path")
    step = None if wanted is None or wanted == "latest" else step_number("step", wanted)
    require_bucket("s3_bucket", options.get("s3_bucket"), options.get("prefix"))
    run = RunKey(model.project, model.run_name)
    if name := options.get("s3_bucket"):
        return await _pulled(bucket(name, options.get("prefix") or ""), run, step, root, copy)
    try:
        stored = await _stored_here(root, run, step)
    except CheckpointNotFoundError:
        if (store := own()) is None:
            raise
        return await _pulled(store, run, step, root, copy)
    return stored.directory if copy is None else (await LocalStore().fetch(stored, Path(copy))).directory


async def _pulled(
    store: CheckpointStore, run: RunKey, step: int | None, root: Path, directory: str | Path | None
) -> Path:
    """A step of a store, in a directory of its own or in the run's."""
    if directory is None:
        return (await pull(store, run, step, root)).directory
    return await pull_copy(store, run, step, Path(directory))


async def _stored_here(root: Path, run: RunKey, step: int | None) -> StoredCheckpoint:
    stored = await find_checkpoint(LocalStore(), ForkSource(root, run.project, run.run, step))
    if step not in (None, stored.step):
        raise CheckpointNotFoundError(f"step {step} of {run.run!r} is not stored; the newest before is {stored.step}")
    return stored
