"""Gathering: order, exceptions within and beyond what is allowed, what runs on is cancelled."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from art_core.client import gather
from art_core.client.gather import gather_trajectories, gather_trajectory_groups
from art_core.client.group import trajectory_group
from art_core.errors import ConfigError, LocalServingUnavailableError, TrajectoryError
from art_core.trajectory import Trajectory, TrajectoryGroup
from tests.art_core.rollout import choice, trajectory


async def rollout(reward: float, fails: bool = False) -> Trajectory:
    if fails:
        raise ValueError(f"rollout {reward} failed")
    return trajectory(choice([1], [2, 3]), choice([1, 2, 3], [4]), reward=reward)


def groups(*failing: tuple[int, int], count: int = 3, runs: int = 4) -> Any:
    """Pending groups; `failing` are (group, run) that raise."""
    return (trajectory_group(rollout(10 * g + r, (g, r) in failing) for r in range(runs)) for g in range(count))


async def test_groups_come_in_the_order_given() -> None:
    gathered = await gather_trajectory_groups(groups())
    assert [[t.reward for t in g] for g in gathered] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert {t.metrics["completion_tokens"] for g in gathered for t in g} == {3}


async def test_all_rollouts_run_at_once() -> None:
    waiting = asyncio.Barrier(6)

    async def meet() -> Trajectory:
        await waiting.wait()
        return Trajectory()

    gathered = await gather_trajectory_groups(trajectory_group(meet() for _ in range(3)) for _ in range(2))
    assert [len(g) for g in gathered] == [3, 3]


@pytest.mark.parametrize("allowed", [2, 0.17, 0.5, 12])
async def test_exceptions_within_what_is_allowed_stay_on_their_group(allowed: float) -> None:
    gathered = await gather_trajectory_groups(groups((0, 1), (2, 3)), max_exceptions=allowed)
    assert [len(g) for g in gathered] == [3, 4, 3]
    assert [[e.message for e in g.exceptions] for g in gathered] == [["rollout 1 failed"], [], ["rollout 23 failed"]]


@pytest.mark.parametrize("allowed", [0, 1, 0.16])
async def test_one_exception_more_is_raised_as_it_was(allowed: float) -> None:
    with pytest.raises(ValueError, match=r"rollout .* failed"):
        await gather_trajectory_groups(groups((0, 1), (2, 3)), max_exceptions=allowed)


async def test_a_backend_that_is_gone_ends_the_gathering_whatever_is_allowed() -> None:
    async def unreachable() -> Trajectory:
        raise LocalServingUnavailableError("gone")

    with pytest.raises(LocalServingUnavailableError):
        await gather_trajectory_groups([trajectory_group([unreachable()])], max_exceptions=9)
    with pytest.raises(LocalServingUnavailableError):
        await gather_trajectories([unreachable()], max_exceptions=9)


async def test_when_one_is_raised_no_rollout_runs_on() -> None:
    cancelled = 0

    async def endless() -> Trajectory:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return Trajectory()

    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="failed"):
        await gather_trajectory_groups(
            [trajectory_group(endless() for _ in range(3)), trajectory_group([endless(), rollout(0, True)])]
        )
    assert cancelled == 4
    assert asyncio.all_tasks() <= before


async def test_a_caller_that_is_cancelled_leaves_nothing_running() -> None:
    started = asyncio.Event()

    async def endless() -> Trajectory:
        started.set()
        await asyncio.Event().wait()
        return Trajectory()

    before = asyncio.all_tasks()
    task = asyncio.create_task(  # noqa: RUF006
        gather_trajectory_groups([trajectory_group(endless() for _ in range(3))], max_exceptions=9)
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() <= before


class TestCoroutinesThatReturnAGroup:
    """The other form that programs use."""

    async def test_they_are_awaited_and_counted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tallies: list[gather.RolloutTally] = []

        class KeptTally(gather.RolloutTally):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                tallies.append(self)

        monkeypatch.setattr(gather, "RolloutTally", KeptTally)

        async def task(g: int) -> TrajectoryGroup:
            return await trajectory_group(rollout(r, fails=r == g) for r in range(3))

        gathered = await gather_trajectory_groups((task(g) for g in range(2)), max_exceptions=2)
        assert [(len(g), len(g.exceptions)) for g in gathered] == [(2, 1), (2, 1)]
        (tally,) = tallies
        assert (len(tally.trajectories), len(tally.errors), tally.counts["reward"]) == (4, 2, 4)

    async def test_one_that_raises_gives_an_empty_group_with_the_exception(self) -> None:
        async def broken() -> TrajectoryGroup:
            raise KeyError("setup")

        async def fine() -> TrajectoryGroup:
            return TrajectoryGroup([await rollout(1)])

        gathered = await gather_trajectory_groups([broken(), fine()], max_exceptions=1)
        assert [(len(g), [e.type for e in g.exceptions]) for g in gathered] == [(0, ["KeyError"]), (1, [])]
        with pytest.raises(KeyError):
            await gather_trajectory_groups([broken(), fine()])

    async def test_a_finished_group_passes_through(self) -> None:
        ready = TrajectoryGroup([await rollout(1)])
        assert (await gather_trajectory_groups([ready]))[0] is ready


async def test_after_each_may_replace_drop_or_multiply() -> None:
    async def after(group: TrajectoryGroup) -> TrajectoryGroup | list[TrajectoryGroup] | None:
        first = group.trajectories[0].reward
        return {0: None, 10: group, 20: [group, TrajectoryGroup([])]}[int(first)]

    gathered = await gather_trajectory_groups(groups(), after_each=after)
    assert [len(g) for g in gathered] == [4, 4, 0]
    assert gathered[0].trajectories[0].reward == 10


async def test_an_error_in_after_each_is_raised_whatever_is_allowed() -> None:
    async def after(group: TrajectoryGroup) -> None:
        raise LookupError("judge")

    with pytest.raises(LookupError, match="judge"):
        await gather_trajectory_groups(groups(), after_each=after, max_exceptions=99)


async def test_gather_trajectories() -> None:
    async def several() -> list[Trajectory]:
        return [await rollout(5), await rollout(6)]

    one, error, many = await gather_trajectories([rollout(1), rollout(2, True), several()], max_exceptions=1)
    assert one.reward == 1 and isinstance(error, ValueError) and [t.reward for t in many] == [5, 6]
    with pytest.raises(ValueError, match="rollout 2"):
        await gather_trajectories([rollout(1), rollout(2, True)])


async def test_an_unknown_keyword_is_named() -> None:
    with pytest.raises(ConfigError, match="'max_exception'; did you mean 'max_exceptions'"):
        await gather_trajectory_groups([], max_exception=1)  # type: ignore[call-arg]


async def test_the_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gatherings at once each show theirs."""
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    await gather_trajectory_groups(groups())
    assert text.getvalue() == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    await asyncio.gather(
        gather_trajectory_groups(groups((0, 0)), pbar_desc="train", max_exceptions=1, max_metrics=1),
        gather_trajectory_groups(groups(), pbar_desc="val"),
        gather_trajectory_groups(groups(), pbar_desc=None),
    )
    shown = text.getvalue()
    assert "train" in shown and "val" in shown and "12/12" in shown
    assert "exceptions=1" in shown and "reward=" in shown


async def test_what_is_no_group_is_named() -> None:
    async def loose() -> list[Trajectory]:
        return [await rollout(1)]

    for given, seen in ((await rollout(1), "Trajectory"), (loose(), "list")):
        with pytest.raises(TrajectoryError, match=f"a {seen} was gathered as a group; allowed: a TrajectoryGroup"):
            await gather_trajectory_groups([given], max_exceptions=9)  # type: ignore[list-item]
