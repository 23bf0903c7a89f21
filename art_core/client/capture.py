"""Trajectories that are recorded while an agent talks to its model, instead of being written by the agent."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, Literal, overload

from art_core.chat import family
from art_core.errors import TrajectoryError
from art_core.trajectory import Trajectory, TrajectoryGroup, recording


async def trajectory(coroutine: Coroutine[Any, Any, object]) -> Trajectory:
    """Run an agent and record what it and the model said to each other.

    Recorded in `Trajectory.exchanges`: chat completions through ``model.openai_client()``, also from tasks that the
    agent starts, but for streamed ones. The agent sets the reward: ``art.current_trajectory().reward = 1.0``.

    Args:
        coroutine: The agent's; what it returns is dropped.

    Returns:
        The trajectory, with its duration.

    Raises:
        TrajectoryError: It is no coroutine, so that what it does could not be told from what other tasks do.
    """
    if not inspect.iscoroutine(coroutine):
        raise TrajectoryError(
            f"art.trajectory() got a {type(coroutine).__name__}; allowed: a coroutine that has not been started, "
            f"such as rollout(model)"
        )
    with Trajectory() as recorded:
        await coroutine
    return recorded


@overload
def current_trajectory(*, require: Literal[True]) -> Trajectory:  # noqa: D418 - every public name has one
    """One that must be there."""
    ...


@overload
def current_trajectory(*, require: bool = False) -> Trajectory | None:  # noqa: D418
    """One that may be missing."""
    ...


def current_trajectory(*, require: bool = False) -> Trajectory | None:
    """The trajectory that records the running code.

    Args:
        require: Raise where there is none.

    Raises:
        TrajectoryError: There is none, and one is required.
    """
    if recording.get():
        return recording.get()[-1]
    if require:
        raise TrajectoryError("no trajectory is recording; run this inside `art.trajectory(...)`")
    return None


def trained_on(groups: Iterable[TrajectoryGroup], model: str) -> list[TrajectoryGroup]:
    """Groups whose recorded trajectories hold nothing that another model said, e.g. a simulated user or a judge.

    Args:
        groups: They are not changed.
        model: The trained model's name, without a step.

    Raises:
        TrajectoryError: These are no groups, or a recorded trajectory holds nothing of that model.
    """
    return [
        group.model_copy(update={"trajectories": [_said_by(model, trajectory) for trajectory in group]})
        if any(trajectory.exchanges for trajectory in group)
        else group
        for group in _groups(groups)
    ]


def _groups(given: object) -> list[TrajectoryGroup]:
    """What was handed in, if it is groups: a single group, or its trajectories, is easily taken for that."""
    wanted = "allowed: a list of art.TrajectoryGroup, as art.gather_trajectory_groups gives it once it is awaited"
    if not isinstance(given, Iterable):
        raise TrajectoryError(f"trajectory_groups is a {type(given).__name__}; {wanted}")
    items = list(given)
    for item in items:
        if not isinstance(item, TrajectoryGroup):
            raise TrajectoryError(f"trajectory_groups holds a {type(item).__name__}; {wanted}")
    return items


def _said_by(model: str, trajectory: Trajectory) -> Trajectory:
    recorded = trajectory.exchanges.chat_completions
    own = [exchange for exchange in recorded if family(exchange.model) == model]
    if len(own) == len(recorded):
        return trajectory
    if not own:
        seen = sorted({exchange.model for exchange in recorded})
        raise TrajectoryError(f"a trajectory has recorded nothing of {model!r}, only of {', '.join(seen)}")
    exchanges = trajectory.exchanges.model_copy(update={"chat_completions": own})
    return trajectory.model_copy(update={"exchanges": exchanges})


_yielded: ContextVar[list[Trajectory] | None] = ContextVar("yielded", default=None)


def yield_trajectory(trajectory: Trajectory) -> None:
    """Hand a trajectory out of code whose return value is something else; see `capture_yielded_trajectory`.

    Raises:
        TrajectoryError: Nobody waits for one.
    """
    waiting = _yielded.get()
    if waiting is None:
        raise TrajectoryError("nobody waits for a trajectory; call this inside art.capture_yielded_trajectory(...)")
    waiting.append(trajectory)


async def capture_yielded_trajectory(coroutine: Coroutine[Any, Any, object]) -> Trajectory:
    """Run a coroutine and return the trajectory that it handed out, the last one of several.

    Raises:
        TrajectoryError: It handed out none.
    """
    waiting: list[Trajectory] = []
    token = _yielded.set(waiting)
    try:
        await coroutine
    finally:
        _yielded.reset(token)
    if not waiting:
        raise TrajectoryError("the coroutine ended without art.yield_trajectory(...)")
    return waiting[-1]
