"""Batches against a plain float64 reference, and their metrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.batch import DTYPES, TrainBatch, make_batch
from art_core.errors import BatchError, TrajectoryError
from art_core.tokenization import TokenizationLimits
from art_core.trajectory import History, Trajectory, TrajectoryGroup
from tests.art_core.rollout import choice, group, trajectory

LIMITS = TokenizationLimits(vocab_size=100, context_tokens=64, current_step=3)


def test_padding_and_broadcast() -> None:
    split = trajectory(choice([1, 2], [3, 4]), choice([9], [8]), reward=1.0)
    batch, _ = make_batch([TrajectoryGroup([split, trajectory(choice([5], [6]), reward=0.0)])], LIMITS, False)
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4], [9, 8, 0, 0], [5, 6, 0, 0]]
    assert batch.loss_mask_BT.astype(int).tolist() == [[0, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert batch.advantages_BT.tolist() == [[0, 0, 0.5, 0.5], [0, 0.5, 0, 0], [0, -0.5, 0, 0]]
    assert batch.policy_steps_BT.tolist() == [[-1, -1, 0, 0], [-1, 0, -1, -1], [-1, 0, -1, -1]]
    assert batch.temperatures_BT.tolist() == [[1] * 4] * 3
    assert batch.lengths_B.tolist() == [4, 2, 2]
    assert batch.trajectory_ids_B.tolist() == [0, 0, 1]
    assert batch.group_ids_B.tolist() == [0, 0, 0]


turn = st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=5), st.lists(st.integers(0, 99), max_size=5))
rollouts = st.tuples(st.floats(-10, 10), st.lists(turn, min_size=1, max_size=3), st.floats(0.1, 2.0))


@settings(max_examples=50, deadline=None)  # a shared machine may pause
@given(st.lists(st.lists(rollouts, min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_against_a_float64_reference(data: list, scale: bool) -> None:
    """Every array, rebuilt sequence by sequence in plain Python and float64."""
    groups, rows = [], []
    for g, members in enumerate(data):
        rewards = np.array([reward for reward, _, _ in members], np.float64)
        deviation = np.sqrt(((rewards - rewards.sum() / len(rewards)) ** 2).sum() / len(rewards))
        made = []
        for reward, turns, temperature in members:
            advantage = reward - rewards.sum() / len(rewards)
            advantage = advantage / (deviation + 1e-6) if scale else advantage
            index = sum(len(each) for each in groups) + len(made)
            histories = []
            for prompt, sampled in turns:
                logprobs = [-0.1 * (i + 1) for i in range(len(sampled))]
                histories.append([choice(prompt, sampled, logprobs, policy_step=g, temperature=temperature)])
                rows.append((prompt, sampled, logprobs, advantage, g, index, temperature))
            first, *others = [History(messages_and_choices=items) for items in histories]
            made.append(
                Trajectory(messages_and_choices=first.messages_and_choices, additional_histories=others, reward=reward)
            )
        groups.append(TrajectoryGroup(made))
    batch, metrics = make_batch(groups, LIMITS, scale)
    assert batch.tokens_BT.shape == (len(rows), max(len(p) + len(s) for p, s, *_ in rows))
    for b, (prompt, sampled, logprobs, advantage, g, index, temperature) in enumerate(rows):
        P, S = len(prompt), len(sampled)
        rest = batch.tokens_BT.shape[1] - P - S
        assert batch.tokens_BT[b].tolist() == prompt + sampled + [0] * rest
        assert batch.loss_mask_BT[b].tolist() == [False] * P + [True] * S + [False] * rest
        assert batch.logprobs_BT[b] == pytest.approx([0] * P + logprobs + [0] * rest)
        wanted = [0] * P + [advantage] * S + [0] * rest
        assert batch.advantages_BT[b] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        assert batch.policy_steps_BT[b].tolist() == [-1] * P + [g] * S + [-1] * rest
        assert batch.temperatures_BT[b] == pytest.approx([1] * P + [temperature] * S + [1] * rest)
        assert (batch.lengths_B[b], batch.group_ids_B[b], batch.trajectory_ids_B[b]) == (P + S, g, index)
    assert metrics["data/step_trainable_tokens"] == sum(len(sampled) for _, sampled, *_ in rows)


def test_metrics() -> None:
    late = TrajectoryGroup([trajectory(choice([1], [2, 3], policy_step=p), reward=p) for p in (1, 3)])
    split = TrajectoryGroup([trajectory(choice([1], [2], policy_step=3), choice([5], [6], policy_step=3))])
    failed = TrajectoryGroup([ValueError("x"), ValueError("y")])
    _, metrics = make_batch([late, split, failed, group(7.0, 7.0)], LIMITS)
    assert metrics == {
        "data/step_num_groups": 4,
        "data/step_num_groups_trainable": 1,
        "data/step_num_groups_zero_variance": 1,
        "data/step_num_groups_small": 2,
        "data/step_num_trajectories": 5,
        "data/step_num_sequences": 6,
        "data/step_history_splits": 1,
        "data/step_choices_without_policy_step": 0,
        "data/step_trainable_tokens": 10,
        "data/step_tokens_without_logprob": 0,
        "data/step_policy_lag_mean": pytest.approx((2 * 2 + 2 * 0 + 2 * 0 + 4 * 3) / 10),
        "data/step_policy_lag_max": 3,
        "train/reward": pytest.approx((1 + 3 + 0 + 7 + 7) / 5),
        "train/reward_std_dev": pytest.approx(0.5),
        "train/exception_rate": pytest.approx(2 / 7),
    }
    assert all(type(value) is float for value in metrics.values())


def test_advantages_are_balanced() -> None:
    batch, _ = make_batch([group(1.0, 0.0)], LIMITS, False, 0.5)
    assert set(batch.advantages_BT[batch.loss_mask_BT].tolist()) == {0.5, -0.25}


def test_choices_without_logprobs_are_nan_where_sampled_and_counted() -> None:
    silent = choice([1, 2], [3, 4])
    silent.logprobs = None
    mixed = TrajectoryGroup([trajectory(silent, choice([1, 2, 3, 4, 5], [6])), trajectory(choice([7], [8]), reward=1)])
    batch, metrics = make_batch([mixed], dataclasses.replace(LIMITS, require_logprobs=False))
    assert np.isnan(batch.logprobs_BT).astype(int).tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6]
    assert metrics["data/step_tokens_without_logprob"] == batch.tokens_without_logprob == 2
    assert batch.loss_mask_BT[0].astype(int).tolist() == [0, 0, 1, 1, 0, 1]
    with pytest.raises(TrajectoryError, match=r"choice 0 .* has no logprobs; .* allow_training_without_logprobs=True"):
        make_batch([mixed], LIMITS)


def test_without_logprobs_the_token_ids_can_t_be_left_out() -> None:
    silent = choice([1, 2], [3, 4])
    silent.logprobs = None
    del silent.model_extra["token_ids"]
    with pytest.raises(TrajectoryError, match=r"choice 0 .* has no logprobs; .* Choices that have token_ids"):
        make_batch([TrajectoryGroup([trajectory(silent)])], dataclasses.replace(LIMITS, require_logprobs=False))


def test_nothing_to_learn_is_a_batch_and_no_error() -> None:
    batch, metrics = make_batch([group(1.0), group(2.0, 2.0)], LIMITS)
    assert not batch.usable
    assert batch.loss_tokens == 6
    assert metrics["data/step_num_groups_trainable"] == 0


def test_rewards_that_differ_only_by_the_rounding_of_their_mean_teach_nothing() -> None:
    assert not make_batch([group(0.1, 0.1, 0.1)], LIMITS)[0].usable


def test_no_trajectory_at_all_is_refused() -> None:
    with pytest.raises(TrajectoryError, match="hand in at least one"):
        make_batch([TrajectoryGroup([])], LIMITS)


class TestInvariants:
    """What `TrainBatch` itself refuses, also from a trainer's own tests."""

    def _batch(self) -> TrainBatch:
        return make_batch([group(0.0, 1.0)], LIMITS)[0]

    @pytest.mark.parametrize("field", sorted(DTYPES))
    def test_a_wrong_dtype_or_shape_is_named(self, field: str) -> None:
        array = getattr(self._batch(), field)
        with pytest.raises(BatchError, match=f"{field} is complex128"):
            dataclasses.replace(self._batch(), **{field: array.astype(np.complex128)})
        if field != "tokens_BT":  # the others are measured against it
            with pytest.raises(BatchError, match=f"{field} is "):
                dataclasses.replace(self._batch(), **{field: array[:1]})

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("logprobs_BT", np.nan, "finite"),  # also where not sampled
            ("logprobs_BT", -np.inf, "finite"),
            ("advantages_BT", np.inf, "finite"),
            ("temperatures_BT", 0, "above 0"),
            ("loss_mask_BT", True, "first token"),
        ],
    )
    def test_a_wrong_value_is_named(self, field: str, value: float, message: str) -> None:
        with pytest.raises(BatchError, match=message):
            dataclasses.replace(self._batch(), **{field: np.full_like(getattr(self._batch(), field), value)})
