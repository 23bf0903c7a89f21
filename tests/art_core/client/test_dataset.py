"""`iterate_dataset`: every item once an epoch, the same order on every start."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.client.dataset import iterate_dataset
from art_core.errors import ConfigError


@settings(deadline=None)  # a shared machine may pause
@given(st.integers(0, 20), st.integers(1, 7), st.integers(0, 3), st.integers(0, 30))
def test_epochs_steps_and_resuming(size: int, per_step: int, epochs: int, initial: int) -> None:
    data = list(range(size))
    batches = list(iterate_dataset(data, per_step, epochs))
    assert [b.step for b in batches] == list(range(len(batches)))
    for epoch in range(epochs):
        of_epoch = [b for b in batches if b.epoch == epoch]
        assert [b.epoch_step for b in of_epoch] == list(range(len(of_epoch)))
        assert sorted(item for b in of_epoch for item in b.items) == data
        assert all(len(b.items) == per_step for b in of_epoch[:-1])
    assert list(iterate_dataset(data, per_step, epochs, initial_step=initial)) == batches[initial:]


def test_epochs_differ_in_order() -> None:
    first, second = iterate_dataset(list(range(50)), groups_per_step=50, num_epochs=2)
    assert first.items != second.items != list(range(50))


def test_a_batch_size_below_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="groups_per_step is 0"):
        list(iterate_dataset([1], groups_per_step=0))
