"""Scenarios in batches, one per training step, resumable by step number."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from art_core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetBatch(Generic[T]):
    """What one step works on."""

    items: list[T]
    step: int
    """Counted through all epochs."""
    epoch: int
    epoch_step: int
    """Counted within the epoch."""


def iterate_dataset(
    dataset: Sequence[T],
    groups_per_step: int = 1,
    num_epochs: int = 1,
    initial_step: int = 0,
    use_tqdm: bool = True,
) -> Iterator[DatasetBatch[T]]:
    """Batches of a dataset, shuffled anew in each epoch; the order depends on the epoch's number alone.

    Args:
        dataset: All items.
        groups_per_step: Items a batch; an epoch's last may have fewer.
        num_epochs: How often the dataset is gone through.
        initial_step: Steps before this one are left out, as when a run is resumed: ``await model.get_step()``.
        use_tqdm: Accepted, not used: a step's own progress bar is the one shown.

    Raises:
        ConfigError: `groups_per_step` is below 1.
    """
    if groups_per_step < 1:
        raise ConfigError(f"groups_per_step is {groups_per_step!r}; allowed: 1 or more")
    starts = range(0, len(dataset), groups_per_step)
    for epoch in range(num_epochs):
        order = list(range(len(dataset)))
        random.Random(epoch).shuffle(order)
        for epoch_step, start in enumerate(starts):
            step = epoch * len(starts) + epoch_step
            if step >= initial_step:
                items = [dataset[i] for i in order[start : start + groups_per_step]]
                yield DatasetBatch(items, step, epoch, epoch_step)
