"""Configuration and plugins to parts: which engine, trainer, store and publisher a run gets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from art_core.capability import Capabilities
from art_core.config import Environment, PartOptions, Timeouts
from art_core.part import EnginePart, Part, PublisherPart, StorePart, TrainerPart
from art_core.plugins import Kind, Plugins
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.store import CheckpointStore
from art_core.worker import TrainerWorker

_log = logging.getLogger("art.compose")

Selection = str | PartOptions | Part | None
"""How a part may be chosen: its name, an instance of its options, a part of one's own, or None for automatic."""


@dataclass(frozen=True)
class Choice:
    """What the caller chose; None means: the environment variable, else the preset or the highest priority."""

    engine: Selection = None
    trainer: Selection = None
    store: Selection = None
    publisher: Selection = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    """Option values on top of the selection's."""
    trainer_options: Mapping[str, Any] = field(default_factory=dict)
    """Option values on top of the selection's."""
    foreign_options: Collection[str] = ()
    """Option names of other parts: ignored with a warning where the chosen one lacks them, never an error."""


PRESET: Mapping[Kind, str] = {"store": "file", "publisher": "reload"}
"""What is used where neither the caller nor the environment names a part; other kinds go by priority."""


@dataclass(frozen=True)
class Parts:
    """Four parts, made but not started."""

    engine: InferenceEngine
    engine_name: str
    engine_capabilities: Capabilities
    trainer: TrainerWorker
    trainer_name: str
    store: CheckpointStore
    publisher: Publisher


def compose(choice: Choice, plugins: Plugins, log_directory: Path, timeouts: Timeouts) -> Parts:
    """Make the four parts.

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
    engine, engine_options = _select(plugins, "engine", choice.engine, environment.engine)
    trainer, trainer_options = _select(plugins, "trainer", choice.trainer, environment.trainer)
    publisher, publisher_options = _select(plugins, "publisher", choice.publisher, environment.publisher)
    engine_part = cast(EnginePart, engine)
    made = engine_part.create(_merge(engine, engine_options, choice.engine_options, choice.foreign_options))
    values = _merge(trainer, trainer_options, choice.trainer_options, choice.foreign_options).model_dump()
    trainer_part, log_path = cast(TrainerPart, trainer), log_directory / "trainer.log"
    return Parts(
        engine=made,
        engine_name=engine.name,
        engine_capabilities=engine.capabilities,
        trainer=TrainerWorker(trainer_part.name, values, log_path, timeouts, trainer_part.environment),
        trainer_name=trainer.name,
        store=compose_store(choice.store, plugins),
        publisher=cast(PublisherPart, publisher).create(publisher_options, made, engine.capabilities),
    )


def compose_store(selection: Selection, plugins: Plugins) -> CheckpointStore:
    """The store alone, as `compose` would make it.

    Args:
        selection: What the caller chose.
        plugins: Where a named part is found.

    Raises:
        PluginError: The named part can't be used.
    """
    part, options = _select(plugins, "store", selection, Environment.read().store)
    return cast(StorePart, part).create(options)


def _select(plugins: Plugins, kind: Kind, selection: Selection, named: str | None) -> tuple[Part, PartOptions]:
    if isinstance(selection, Part):
        return selection, selection.options()
    if isinstance(selection, PartOptions):
        return plugins.part(kind, selection.part), selection
    name = selection or named or PRESET.get(kind)
    part = plugins.part(kind, name) if name else plugins.best(kind)
    return part, part.options()


def _merge(part: Part, options: PartOptions, values: Mapping[str, Any], foreign: Collection[str]) -> PartOptions:
    ignored = {key for key in values if key not in part.options.model_fields and key in foreign}
    for key in sorted(ignored):
        _log.warning("%r has no option %r; ignored", part.name, key)
    known = {key: value for key, value in values.items() if key not in ignored}
    return part.options.parse({**options.model_dump(exclude_unset=True), **known})
