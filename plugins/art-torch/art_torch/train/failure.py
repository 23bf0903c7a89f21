"""How a step fails: numbers that are not finite, memory that runs out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from art_core.batch import TrainBatch
from art_core.errors import NonFiniteLossError, OutOfMemoryError
from art_core.step import StepConfig


def require_finite(what: str, value: float, config: StepConfig) -> None:
    """Refuse to go on with a number that is not finite.

    Args:
        what: What the number is.
        value: The number.
        config: The step's.

    Raises:
        NonFiniteLossError: It is not.
    """
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"{what} is {value}; weights and optimizer are as they were; lower learning_rate "
            f"(now {config.learning_rate:g}) or resume from an earlier step",
            stage="train",
        )


@contextmanager
def memory_errors(batch: TrainBatch, config: StepConfig) -> Iterator[None]:
    """Turn the ways in which torch says that memory ran out into one error that says what to lower.

    Args:
        batch: The step's.
        config: The step's.

    Raises:
        OutOfMemoryError: Memory ran out inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error)
        # torch's CPU allocator raises a plain RuntimeError, in one of these two wordings.
        plain = type(error) is RuntimeError and ("can't allocate memory" in told or "not enough memory" in told)
        if not (plain or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        raise OutOfMemoryError(
            f"the step did not fit in memory: {told.strip().splitlines()[0] if told else 'no memory'}; lower "
            f"microbatch_tokens (now {config.microbatch_tokens}; the longest sequence has {batch.lengths_B.max()}), or "
            "set the trainer's option gradient_checkpointing",
            stage="train",
        ) from error
