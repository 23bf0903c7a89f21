"""What a plugin registers: a part's name, options, capabilities and factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from art_core.capability import Capabilities
from art_core.config import PartOptions
from art_core.protocols import CONTRACT_VERSION
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.store import CheckpointStore
from art_core.protocols.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Part:
    """What every kind of part declares."""

    name: str
    """Equal to the entry point's name."""
    options: type[PartOptions]
    """Its options, all with defaults; ``options.part == name``."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    priority: int = 0
    """For automatic choice: the highest wins."""
    contract_version: int = CONTRACT_VERSION


@dataclass(frozen=True, kw_only=True)
class EnginePart(Part):
    """An inference engine. The factory must be light: no heavy import, no process."""

    create: Callable[[Any], InferenceEngine]
    """Options to engine."""


@dataclass(frozen=True, kw_only=True)
class TrainerPart(Part):
    """A trainer. Its factory runs in the worker process, where heavy imports belong."""

    create: Callable[[Any], Trainer]
    """Options to trainer."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that its process is launched with: some libraries read theirs before any code of the plugin runs."""


@dataclass(frozen=True, kw_only=True)
class StorePart(Part):
    """A checkpoint store."""

    create: Callable[[Any], CheckpointStore]
    """Options to store."""


@dataclass(frozen=True, kw_only=True)
class PublisherPart(Part):
    """A publisher."""

    create: Callable[[Any, InferenceEngine, Capabilities], Publisher]
    """Options, the engine and what it declares, to publisher."""
