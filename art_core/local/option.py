"""What `LocalBackend` can be given, and whose options a model's configuration holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypedDict, get_args

from art_core.client.dev import EngineArgs, InitArgs, TrainerArgs
from art_core.config import Timeouts
from art_core.errors import ConfigError, nearest
from art_core.publication import PublisherSelections
from art_core.retention import Retention
from art_core.selection import EngineSelection, StoreSelection, TrainerSelection
from art_core.step import StepConfig
from art_core.tier import Durable


class LocalBackendArgs(TypedDict, total=False):
    """Keywords of `LocalBackend`."""

    in_process: bool
    """Both values end with the client; a service that outlives it comes later."""
    path: str | Path | None
    """Root of all runs; default ``.art``."""
    engine: EngineSelection
    """A name, options, an `EnginePart` or an engine; an engine object serves one model."""
    trainer: TrainerSelection
    """A name, options, or ``module:callable``."""
    store: StoreSelection
    """Where steps are copied to: a name, a URL, options, a `StorePart` or a store. Default: nowhere."""
    durable: Durable
    """What `train` waits for: ``"local"``, the default, or ``"remote"``: the store holds the step, too."""
    retention: Retention
    """Which steps are kept; default: all, and the optimizer state of the newest two."""
    publisher: PublisherSelections
    """A name, options, a `PublisherPart`, a function of the engine and its capabilities, or a publisher; or a list of
    these, one of which serves."""
    observers: Sequence[object]
    """Objects with `hookimpl` observer methods, or names of plugins that observe."""
    timeouts: Timeouts
    gpu_cost_per_hour_usd: float | None
    """What this machine costs; makes `model.log` write ``costs/gpu``. Never guessed."""
    enable_expert_replay: bool
    """Accepted, not used: there is no mixture-of-experts trainer yet."""


def check_options(options: LocalBackendArgs) -> None:
    """Refuse, before anything starts, what can't be meant.

    Raises:
        ConfigError: An option is unknown, or its value none of those allowed.
    """
    for key in options:
        if key not in LocalBackendArgs.__annotations__:
            known = nearest(key, LocalBackendArgs.__annotations__)
            raise ConfigError(f"LocalBackend has no option {key!r}; {known}")
    durable = options.get("durable", "local")
    if durable not in get_args(Durable):
        raise ConfigError(f"durable is {durable!r}; allowed: {', '.join(map(repr, get_args(Durable)))}")
    for name, kind in (("retention", Retention), ("timeouts", Timeouts)):
        value = options.get(name)
        if not isinstance(value, kind | None):
            raise ConfigError(f"{name} is {value!r}; allowed: a {kind.__module__}.{kind.__name__}, or None")


STEP_FIELDS = frozenset(field.name for field in fields(StepConfig))
"""Names of `StepConfig`: given as `trainer_args` they are the run's defaults."""

FOREIGN = frozenset({*EngineArgs.__annotations__, *InitArgs.__annotations__, *TrainerArgs.__annotations__})
"""Option names that programs write for other engines and trainers: a part that lacks one ignores it, and says so."""
