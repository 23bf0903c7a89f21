"""Advantages against a plain float64 reference, and the groups that teach nothing."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.advantage import advantages, balanced, deviation_trend, group_advantages
from art_core.errors import TrajectoryError
from art_core.trajectory import TrajectoryGroup
from tests.art_core.rollout import group

rewards = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_a_known_group() -> None:
    """By hand: mean 0.25, population deviation sqrt(3)/4."""
    scaled = group_advantages([1.0, 0.0, 0.0, 0.0], scale=True)
    assert scaled == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rel=1e-5)
    assert group_advantages([1.0, 0.0, 0.0, 0.0], scale=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


@settings(deadline=None)  # a shared machine may pause
@given(rewards)
def test_against_the_standard_library(values: list[float]) -> None:
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    expected = [(r - mean) / (deviation + 1e-6) for r in values]
    assert group_advantages(values, scale=True) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert group_advantages(values, scale=False) == pytest.approx([r - mean for r in values], abs=1e-9)


@settings(deadline=None)  # a shared machine may pause
@given(rewards, st.booleans())
def test_they_sum_to_nothing_and_keep_the_order(values: list[float], scale: bool) -> None:
    got = group_advantages(values, scale=scale)
    assert abs(got.sum()) <= 1e-6 * max(1.0, float(np.abs(got).max()) * len(values))
    order = np.argsort(values, kind="stable")
    assert (np.diff(got[order]) >= 0).all()


@settings(deadline=None)  # a shared machine may pause
@given(st.floats(-1e30, 1e30), st.integers(1, 20), st.booleans())
def test_equal_rewards_are_exactly_nothing(reward: float, count: int, scale: bool) -> None:
    assert not group_advantages([reward] * count, scale=scale).any()


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, [2.0, -1.0, 0.0, -4.0]),
        (0.25, [2.0, -0.75, 0.0, -3.0]),
        (1.0, [2.0, 0.0, 0.0, 0.0]),
        (-0.5, [1.0, -1.0, 0.0, -4.0]),
        (-1.0, [0.0, -1.0, 0.0, -4.0]),
    ],
)
def test_a_balance_weakens_one_sign(balance: float, expected: list[float]) -> None:
    assert balanced(np.array([2.0, -1.0, 0.0, -4.0]), balance).tolist() == expected
    got = advantages([group(3.0, 0.0, 1.0, -3.0)], scale=False, balance=balance).trajectories
    unbalanced = [2.75, -0.25, 0.75, -3.25]
    factors = {True: 1 + min(balance, 0.0), False: 1 - max(balance, 0.0)}
    assert got.tolist() == pytest.approx([a * factors[a > 0] for a in unbalanced])


@settings(deadline=None)  # a shared machine may pause
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(1e-3, 10)), min_size=2, max_size=20))
def test_the_trend_of_deviations_is_a_least_squares_line(points: list[tuple[int, float]]) -> None:
    steps, values = zip(*points, strict=True)
    if len(set(steps)) == 1:
        assert deviation_trend(points) == 1.0
        return
    slope, start = np.polyfit(np.array(steps, np.float64), np.array(values), 1)
    expected = max(0.0, (start + slope * max(steps)) / start) if start > 1e-6 else 1.0
    if abs(start) > 1e-6:
        assert deviation_trend(points) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("points", "factor"),
    [
        ([], 1.0),
        ([(3, 0.2)], 1.0),
        ([(1, 0.4), (2, 0.3), (3, 0.2)], 0.4),
        ([(3, 0.2), (1, 0.4), (2, 0.3)], 0.4),
        ([(1, 0.2), (2, 0.3)], 3.0),
        ([(1, 0.0), (2, 0.1)], 1.0),
        ([(1, 0.3), (2, 0.0)], 0.0),
    ],
)
def test_the_trend_by_hand(points: list[tuple[int, float]], factor: float) -> None:
    assert deviation_trend(points) == pytest.approx(factor, abs=1e-12)


def test_groups_are_compared_within_themselves_and_counted() -> None:
    got = advantages([group(1.0, 0.0), group(5.0, 5.0), group(3.0), TrajectoryGroup([])], scale=False)
    assert got.trajectories.dtype == np.float32
    assert got.trajectories.tolist() == [0.5, -0.5, 0.0, 0.0, 0.0]
    assert (got.trainable_groups, got.zero_variance_groups, got.small_groups) == (1, 1, 2)
    assert got.reward_mean == pytest.approx(14 / 5)
    assert got.reward_std_dev == pytest.approx(0.25)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, 1e39])
def test_a_bad_reward_is_named(reward: float) -> None:
    with pytest.raises(
        TrajectoryError, match=rf"group 1, trajectory 2 has reward {reward!r}; allowed: a finite".replace("+", r"\+")
    ):
        advantages([group(0.0, 1.0), group(0.0, 1.0, reward)], scale=True)


def test_the_largest_rewards_stay_finite() -> None:
    for scale in (True, False):
        assert np.isfinite(advantages([group(1e38, -1e38)], scale=scale).trajectories).all()


@pytest.mark.parametrize("groups", [[], [TrajectoryGroup([]), TrajectoryGroup([ValueError("x")])]])
def test_nothing_at_all_says_what_to_hand_in(groups: list[TrajectoryGroup]) -> None:
    with pytest.raises(TrajectoryError, match=rf"none of the {len(groups)} groups .* hand in at least one"):
        advantages(groups, scale=True)
