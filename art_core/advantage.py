"""Stage 2: how much better each trajectory did than its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_core.errors import TrajectoryError
from art_core.trajectory import TrajectoryGroup

STD_FLOOR = 1e-6
"""Added to the standard deviation; the reference backend's value."""
REWARD_LIMIT = 1e38
"""Largest reward in size: advantages are float32, which ends at 3.4e38."""


def group_advantages(rewards: Sequence[float], *, scale: bool) -> NDArray[np.float64]:
    """Advantage of each of a group's G trajectories.

    Args:
        rewards: G finite rewards.
        scale: Divide by the group's standard deviation (over G, not G - 1, as the reference backend does) plus
            `STD_FLOOR`. Without it hard and easy tasks keep their weight.

    Returns:
        G float64; exactly 0 where all rewards are equal.

    Source:
        Scaled: Shao et al. 2024, GRPO (arXiv:2402.03300), section 4.1.2, outcome supervision:
        ``(r_i - mean(r)) / std(r)``. Unscaled: Liu et al. 2025, Dr. GRPO (arXiv:2503.20783), section 3.2.
    """
    rewards_G = np.asarray(rewards, np.float64)
    if rewards_G.size == 0 or rewards_G.min() == rewards_G.max():
        return np.zeros_like(rewards_G)  # the mean of equal floats can differ from them by rounding
    centred_G: NDArray[np.float64] = rewards_G - rewards_G.mean()
    if scale:
        centred_G /= rewards_G.std() + STD_FLOOR
    return centred_G


def balanced(advantages_N: NDArray[np.float64], balance: float) -> NDArray[np.float64]:
    """Advantages with the weight of one sign taken down.

    Args:
        advantages_N: Of any number of trajectories.
        balance: -1 to 1; above 0 negative advantages are multiplied by 1 - balance, below 0 positive ones by
            1 + balance. 0 changes nothing; 1 learns from what went well alone, -1 from what went badly.

    Returns:
        N float64, in the same order.

    Source:
        openpipe-art 0.5; it rescales them afterwards to a mean size of 1, which is not done here.
    """
    weakened_N = advantages_N < 0 if balance > 0 else advantages_N > 0
    return np.where(weakened_N, advantages_N * (1 - abs(balance)), advantages_N)


def deviation_trend(deviations: Sequence[tuple[int, float]]) -> float:
    """How a run's reward deviation has changed since step 0: 0.5 where it is half of what it was.

    A least-squares line is laid through all steps, so that one odd batch counts little. Rewards that spread less and
    less carry less signal in each step, and a learning rate that follows takes smaller steps on what is left.

    Args:
        deviations: Step and mean deviation of its groups' rewards, in any order; several of one step count each.

    Returns:
        The line's value at the newest step over its value at step 0, at least 0; 1 where there are fewer than two
        steps, or where the line starts at 0 or below.

    Source:
        openpipe-art 0.5.
    """
    steps_N = np.asarray([step for step, _ in deviations], np.float64)
    if len(set(steps_N.tolist())) < 2:
        return 1.0
    values_N = np.asarray([value for _, value in deviations], np.float64)
    centred_N = steps_N - steps_N.mean()
    slope = float(centred_N @ values_N / (centred_N @ centred_N))
    start = float(values_N.mean() - slope * steps_N.mean())
    return max(0.0, 1.0 + slope * float(steps_N.max()) / start) if start > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Advantages:
    """What a step's rewards say."""

    trajectories: NDArray[np.float32]
    """Per trajectory, counted through all groups in the order submitted."""
    trainable_groups: int
    """Groups whose rewards differ."""
    zero_variance_groups: int
    """Groups of two or more whose rewards are all equal: nothing to learn."""
    small_groups: int
    """Groups of one or none: nothing to compare with."""
    reward_mean: float
    """Over all trajectories."""
    reward_std_dev: float
    """Mean over groups of two or more of their standard deviation; 0 without any."""


def advantages(groups: Sequence[TrajectoryGroup], *, scale: bool, balance: float = 0.0) -> Advantages:
    """Compare every trajectory with its group.

    Args:
        groups: As submitted.
        scale: See `group_advantages`.
        balance: See `balanced`.

    Raises:
        TrajectoryError: A reward is NaN, infinite or beyond `REWARD_LIMIT`, or no group has any trajectory.
    """
    rewards = [[_reward(t.reward, g, i) for i, t in enumerate(group)] for g, group in enumerate(groups)]
    flat = [reward for group in rewards for reward in group]
    if not flat:
        failed = sum(len(group.exceptions) for group in groups)
        raise TrajectoryError(
            f"none of the {len(groups)} groups has a trajectory ({failed} rollouts raised); hand in at least one "
            f"TrajectoryGroup with trajectories, several per task so that their rewards can be compared"
        )
    compared = [group for group in rewards if len(group) > 1]
    trainable = sum(min(group) != max(group) for group in compared)
    compared_N = np.concatenate([group_advantages(group, scale=scale) for group in rewards])
    return Advantages(
        trajectories=balanced(compared_N, balance).astype(np.float32),
        trainable_groups=trainable,
        zero_variance_groups=len(compared) - trainable,
        small_groups=len(rewards) - len(compared),
        reward_mean=float(np.mean(flat)),
        reward_std_dev=float(np.mean([np.std(group) for group in compared])) if compared else 0.0,
    )


def _reward(value: float, group: int, trajectory: int) -> float:
    if not abs(value) <= REWARD_LIMIT:  # also refuses NaN
        raise TrajectoryError(
            f"group {group}, trajectory {trajectory} has reward {value!r}; "
            f"allowed: a finite number, at most {REWARD_LIMIT:g} in size"
        )
    return float(value)
