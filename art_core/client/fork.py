"""Checkpoints as users ask for them: forked into a new model, or pulled out of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from art_core.client.config import lora_config
from art_core.client.keyword import check_keywords
from art_core.client.model import Model
from art_core.client.trainable import TrainableModel
from art_core.config import Environment
from art_core.errors import CapabilityError, CheckpointNotFoundError, ConfigError
from art_core.fork import ForkSource, ForkTarget, find_checkpoint, fork_checkpoint
from art_core.local_store import LocalStore
from art_core.model_source import resolve_base_model


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
    from_s3_bucket: None
    """Not implemented."""
    prefix: None
    """Not implemented."""


class PullArgs(TypedDict, total=False):
    """Keywords of `_experimental_pull_model_checkpoint`."""

    step: int | Literal["latest"] | None
    """None is the latest too."""
    local_path: str | Path | None
    """An empty directory for a copy; None: the path where the checkpoint stands is returned."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    s3_bucket: None
    """Not implemented."""
    prefix: None
    """Not implemented."""


async def fork_model(
    store: LocalStore, root: Path, model: TrainableModel[Any], from_model: str, options: ForkArgs
) -> None:
    """Copy a checkpoint of another model into a new one; see `art_core.fork.fork_checkpoint`.

    Args:
        store: Holds both runs.
        root: The backend's root of all runs.
        model: The new model.
        from_model: Run name of the one that is forked.
        options: As given.

    Raises:
        ConfigError: A keyword is unknown, the step below 0, or the two models don't fit together.
        CapabilityError: A keyword is not implemented.
        StoreError: There is no such checkpoint, or the system refuses.
    """
    _check("_experimental_fork_checkpoint", options, ForkArgs.__annotations__)
    step = options.get("not_after_step")
    if step is not None and step < 0:
        raise ConfigError(f"not_after_step is {step}; allowed: 0 or more")
    project, path = options.get("from_project") or model.project, Path(options.get("from_path") or root)
    base = await resolve_base_model(model.base_model, Environment.read().cache)
    lora = lora_config(model.lora_config)
    target = ForkTarget(root, model.project, model.run_name, model.base_model, base, lora)
    await fork_checkpoint(store, ForkSource(path, project, from_model, step), target)


async def pull_model(store: LocalStore, root: Path, model: Model[Any], options: PullArgs) -> Path:
    """Where a checkpoint of a model stands, or a verified copy of it.

    Args:
        store: Holds the run.
        root: The backend's root of all runs.
        model: Registered or not.
        options: As given.

    Raises:
        ConfigError: A keyword is unknown.
        CapabilityError: A keyword is not implemented.
        StoreError: There is no such checkpoint, or the system refuses.
    """
    _check("_experimental_pull_model_checkpoint", options, PullArgs.__annotations__)
    wanted, copy = options.get("step"), options.get("local_path")
    step = None if wanted in (None, "latest") else int(wanted)
    stored = await find_checkpoint(store, ForkSource(root, model.project, model.run_name, step))
    if step not in (None, stored.step):
        raise CheckpointNotFoundError(
            f"step {step} of {model.name!r} is not stored; the newest before is {stored.step}"
        )
    return stored.directory if copy is None else (await store.fetch(stored, Path(copy))).directory


def _check(owner: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    check_keywords(owner, options, known, ())
    for key in ("from_s3_bucket", "s3_bucket", "prefix"):
        if options.get(key) is not None:
            raise CapabilityError(
                f"{owner}({key}={options[key]!r}) is not implemented: checkpoints are read from directories only; "
                f"leave it out, and name another path where the run is not below the backend's own"
            )
