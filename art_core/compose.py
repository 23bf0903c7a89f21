"""Configuration and plugins to parts: which engine, trainer, store and publisher a run gets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from art_core.capability import Capabilities
from art_core.config import Environment, HostedOptions, PartOptions, Timeouts
from art_core.environment import interpreter
from art_core.errors import PluginNotFoundError
from art_core.part import EnginePart, Part, StorePart, TrainerPart, require_contract
from art_core.plugins import Kind, Plugins
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.store import CheckpointStore
from art_core.publication import PublisherSelections, make_publishers, select_publishers
from art_core.selection import (
    EngineSelection,
    Given,
    Selected,
    StoreSelection,
    TrainerSelection,
    select,
)
from art_core.worker import TrainerWorker

_log = logging.getLogger("art.compose")


@dataclass(frozen=True)
class Choice:
    """What the caller chose; None means: the environment variable, else the preset or the highest priority."""

    engine: EngineSelection = None
    trainer: TrainerSelection = None
    store: StoreSelection = None
    publisher: PublisherSelections = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    """Option values on top of the selection's."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """The same, or arguments of the engine's library; see `Given.arguments`."""
    trainer_options: Mapping[str, Any] = field(default_factory=dict)
    """Option values on top of the selection's."""
    foreign_options: Collection[str] = ()
    """Option names of other parts: ignored with a warning where the chosen one lacks them, never an error."""
    step_options: Collection[str] = ()
    """Names that may stand beside `trainer_options`: suggested to who has misspelt one."""


@dataclass(frozen=True)
class Parts:
    """Four parts, made but not started."""

    engine: InferenceEngine
    engine_name: str
    engine_capabilities: Capabilities
    trainer: TrainerWorker
    trainer_name: str
    trainer_capabilities: Capabilities
    store: CheckpointStore | None
    """Where steps are copied to; None: nowhere."""
    publisher: Publisher
    """The publisher whose steps the engine serves."""
    elsewhere: Mapping[str, Publisher] = field(default_factory=dict)
    """Publishers that bring steps elsewhere, by name."""


def compose(choice: Choice, plugins: Plugins, log_directory: Path, timeouts: Timeouts) -> Parts:
    """Make the parts.

    Args:
        choice: What the caller chose.
        plugins: Where named parts are found.
        log_directory: Where the trainer's process logs.
        timeouts: For the trainer's worker.

    Raises:
        PluginError: A named part can't be used.
        ConfigError: An option is unknown or out of range.
    """
    environment = Environment.read()
    engine_given = Given(choice.engine_options, choice.engine_args, choice.foreign_options)
    trainer_given = Given(choice.trainer_options, foreign=choice.foreign_options, besides=choice.step_options)
    chosen: Mapping[Kind, Selected] = {
        "engine": select(plugins, "engine", choice.engine, environment, engine_given),
        "trainer": select(plugins, "trainer", choice.trainer, environment, trainer_given),
        "store": select(plugins, "store", choice.store, environment),
    }
    publishers = select_publishers(plugins, choice.publisher, environment)
    engine = cast(EnginePart, chosen["engine"].part)
    made = engine.create(chosen["engine"].options)
    require_contract(made, InferenceEngine, f"what engine {engine.name!r} creates")
    declared = engine.declares(chosen["engine"].options)
    publisher, elsewhere = make_publishers(publishers, made, declared)
    parts = Parts(
        engine=made,
        engine_name=engine.name,
        engine_capabilities=declared,
        trainer=_worker(chosen["trainer"], log_directory / "trainer.log", timeouts, environment.cache),
        trainer_name=chosen["trainer"].part.name,
        trainer_capabilities=chosen["trainer"].part.capabilities,
        store=_store(chosen["store"]),
        publisher=publisher,
        elsewhere=elsewhere,
    )
    _say(plugins, [*chosen.items(), *(("publisher", each) for each in publishers)])
    return parts


def compose_store(selection: StoreSelection, plugins: Plugins) -> CheckpointStore | None:
    """The store alone, as `compose` would make it; None where steps are copied nowhere.

    Args:
        selection: What the caller chose.
        plugins: Where a named part is found.

    Raises:
        PluginError: The named part can't be used.
    """
    return _store(select(plugins, "store", selection, Environment.read()))


def compose_bucket(selection: StoreSelection, plugins: Plugins, bucket: str, prefix: str) -> CheckpointStore:
    """The store that copies into a bucket: the chosen one, if it takes a bucket, else an installed one that does.

    Args:
        selection: What the caller chose; its other options (endpoint, region) hold for the bucket too.
        plugins: Where parts are found.
        bucket: The bucket's name.
        prefix: What its keys begin with.

    Raises:
        PluginNotFoundError: No installed store takes a bucket.
        ConfigError: The bucket or the prefix can't be used.
    """
    chosen = select(plugins, "store", selection, Environment.read())
    others = [candidate.part for candidate in plugins.candidates("store") if candidate.unusable is None]
    part = next((each for each in (chosen.part, *others) if "bucket" in each.options.model_fields), None)
    if part is None:
        raise PluginNotFoundError(
            f"no installed store takes a bucket ({bucket!r} was given); install one: pip install art-<name>"
        )
    values = chosen.options.model_dump(exclude_unset=True, exclude={"url"}) if part == chosen.part else {}
    made = cast(StorePart, part).create(part.options.parse({**values, "bucket": bucket, "prefix": prefix}))
    return cast(CheckpointStore, made)


def interpreter_of(part: Part, options: PartOptions, cache: Path) -> str:
    """The interpreter that a part's process is launched with: the one its options name, else where its library is.

    Args:
        part: The part.
        options: What it is made with.
        cache: Where managed environments are kept.

    Raises:
        PluginUnusableError: Its library is not here, and there is no environment for it.
    """
    if isinstance(options, HostedOptions) and options.python is not None:
        return options.python
    return interpreter(part.environment, cache) if part.environment else sys.executable


def _worker(chosen: Selected, log_path: Path, timeouts: Timeouts, cache: Path) -> TrainerWorker:
    part, values = cast(TrainerPart, chosen.part), chosen.options.model_dump(exclude={"python"})
    python = interpreter_of(part, chosen.options, cache)
    return TrainerWorker(part.name, values, log_path, timeouts, part.variables, python)


def _store(chosen: Selected) -> CheckpointStore | None:
    part = cast(StorePart, chosen.part)
    made = part.create(chosen.options)
    if made is not None:
        require_contract(made, CheckpointStore, f"what store {part.name!r} creates")
    return made


def _say(plugins: Plugins, chosen: Sequence[tuple[Kind, Selected]]) -> None:
    """Log the choice, once as long as it stays the same."""
    line = "; ".join(f"{kind} {each.part.name!r}: {each.reason}" for kind, each in chosen)
    if line != plugins.chosen:
        _log.info("%s", line)
    plugins.chosen = line
