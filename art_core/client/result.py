"""What training gives back to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from art_core.publication import Publication


@dataclass
class TrainResult:
    """A training step that is served."""

    step: int
    """The new step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """To be logged by the caller: ``await model.log(groups, metrics=result.metrics, step=result.step)``."""


@dataclass
class LocalTrainResult(TrainResult):
    """A training step made on this machine."""

    checkpoint_path: str | None = None
    """The step's checkpoint directory; None where ``save_checkpoint=False`` was given."""
    publications: Mapping[str, Publication] = field(default_factory=dict)
    """What each publisher that brings steps elsewhere made of this one, by its name."""
    checkpoint_ready: Awaitable[None] | None = field(default=None, repr=False, compare=False)
    """None: the checkpoint is whole and durable when `train` returns. Another backend may need it awaited."""
