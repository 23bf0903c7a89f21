"""Groups that are awaited, and batches of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

import art
from art_core.errors import ConfigError


async def rollout(reward: float) -> art.Trajectory:
    return art.Trajectory(reward=reward)


async def failing(text: str = "rollout failed") -> art.Trajectory:
    raise ValueError(text)


def rewards(groups: Iterable[art.TrajectoryGroup]) -> list[list[float]]:
    return [[trajectory.reward for trajectory in group] for group in groups]


class TestTrajectoryGroup:
    """``await art.trajectory_group(...)``."""

    async def test_coroutines_trajectories_and_exceptions_may_be_mixed(self) -> None:
        group = await art.trajectory_group(
            [rollout(1), art.Trajectory(reward=2), KeyError("before")],
            exceptions=[OSError("environment")],
            metadata={"task": 3},
            metrics={"difficulty": 0.5},
            logs=["line"],
        )
        assert isinstance(group, art.TrajectoryGroup)
        assert rewards([group]) == [[1, 2]]
        assert [e.type for e in group.exceptions] == ["KeyError", "OSError"]
        assert (group.metadata, group.metrics, group.logs) == ({"task": 3}, {"difficulty": 0.5}, ["line"])

    async def test_the_first_exception_is_raised_unless_they_are_to_be_kept(self) -> None:
        with pytest.raises(ValueError, match="rollout failed"):
            await art.trajectory_group([rollout(1), failing()])
        group = await art.trajectory_group([rollout(1), failing()], return_exceptions=True)
        assert (len(group), [e.message for e in group.exceptions]) == (1, ["rollout failed"])

    async def test_gathering_allows_as_many_as_it_says_and_those_that_are_kept(self) -> None:
        def groups(**options: Any) -> Any:
            return [art.trajectory_group([rollout(1), failing()], **options) for _ in range(2)]

        gathered = await art.gather_trajectory_groups(groups(), max_exceptions=2)
        assert [len(g.exceptions) for g in gathered] == [1, 1]
        with pytest.raises(ValueError, match="rollout failed"):
            await art.gather_trajectory_groups(groups(), max_exceptions=1)
        kept = await art.gather_trajectory_groups(groups(return_exceptions=True), max_exceptions=0)
        assert [len(g.exceptions) for g in kept] == [1, 1]

    async def test_nobody_cancels_for_an_exception_that_is_kept(self) -> None:
        async def cancelled() -> art.Trajectory:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await art.trajectory_group([cancelled()], return_exceptions=True)

    async def test_an_unknown_keyword_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"'meta'; did you mean 'metadata'"):
            art.trajectory_group([], meta={})  # type: ignore[call-arg]

    async def test_the_older_form_warns_once_and_does_the_same(self) -> None:
        with pytest.warns(DeprecationWarning) as caught:
            pending = art.TrajectoryGroup((rollout(r) for r in (1, 2)), metadata={"task": 1})
        (warning,) = caught
        assert str(warning.message) == (
            "TrajectoryGroup(<awaitables>) is deprecated; write art.trajectory_group(<awaitables>)"
        )
        assert warning.filename == __file__
        group = await pending  # type: ignore[misc]
        assert (rewards([group]), group.metadata) == ([[1, 2]], {"task": 1})


class TestBatches:
    """``async for batch in art.trajectory_group_batches(...)``."""

    async def test_batches_of_that_size_and_a_smaller_last_one(self) -> None:
        groups = (art.trajectory_group([rollout(n)]) for n in range(5))
        batches = [rewards(batch) async for batch in art.trajectory_group_batches(groups, batch_size=2)]
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert sorted(reward for batch in batches for group in batch for reward in group) == [0, 1, 2, 3, 4]

    async def test_skipped_batches_never_run(self) -> None:
        started: list[int] = []

        async def noted(n: int) -> art.Trajectory:
            started.append(n)
            return art.Trajectory(reward=n)

        coroutines = [noted(n) for n in range(6)]
        groups = (art.trajectory_group([each]) for each in coroutines)
        options: Any = {"batch_size": 2, "skip_batches": 2, "max_concurrent_batches": 1}
        batches = [rewards(batch) async for batch in art.trajectory_group_batches(groups, **options)]
        assert batches == [[[4], [5]]]
        assert started == [4, 5]
        for each in coroutines[:4]:
            each.close()

    @pytest.mark.parametrize(("ahead", "most"), [(1, 2), (3, 6)])
    async def test_only_so_many_run_at_once(self, ahead: int, most: int) -> None:
        running, peak = 0, 0

        async def counted() -> art.Trajectory:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0)
            running -= 1
            return art.Trajectory()

        groups = [art.trajectory_group([counted()]) for _ in range(20)]
        async for batch in art.trajectory_group_batches(groups, batch_size=2, max_concurrent_batches=ahead):
            assert len(batch) == 2
        assert peak == most

    async def test_the_next_ones_run_while_a_batch_is_used(self) -> None:
        used = asyncio.Event()

        async def second() -> art.Trajectory:
            used.set()
            return art.Trajectory(reward=2)

        async def first() -> art.Trajectory:
            return art.Trajectory(reward=1)

        groups = [art.trajectory_group([first()]), art.trajectory_group([second()])]
        batches = art.trajectory_group_batches(groups, batch_size=1)
        await anext(batches)
        async with asyncio.timeout(60):
            await used.wait()  # the loop's body, as it were
        assert rewards(await anext(batches)) == [[2]]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)

    async def test_exceptions_are_counted_for_each_batch_anew(self) -> None:
        def groups() -> list[Any]:
            return [art.trajectory_group([rollout(n), failing()]) for n in range(4)]

        options: Any = {"batch_size": 1, "max_concurrent_batches": 1}
        allowed = art.trajectory_group_batches(groups(), max_batch_exceptions=1, **options)
        assert [len(batch[0].exceptions) async for batch in allowed] == [1, 1, 1, 1]
        with pytest.raises(ValueError, match="rollout failed"):
            async for _ in art.trajectory_group_batches(groups(), max_batch_exceptions=0, **options):
                pytest.fail("a batch with one exception too many")

    @pytest.mark.parametrize("how", ["close", "raise", "cancel"])
    async def test_nothing_runs_on_when_it_is_given_up(self, how: str) -> None:
        async def endless() -> art.Trajectory:
            await asyncio.Event().wait()
            return art.Trajectory()

        last = failing() if how == "raise" else endless()
        groups = [art.trajectory_group([each]) for each in (rollout(1), endless(), last)]
        before = asyncio.all_tasks()
        batches = art.trajectory_group_batches(groups, batch_size=1, max_batch_exceptions=0)
        if how == "raise":
            with pytest.raises(ValueError, match="rollout failed"):
                async for _ in batches:
                    continue
        else:
            await anext(batches)
            if how == "close":
                await batches.aclose()  # type: ignore[attr-defined]
            else:
                waiting = asyncio.ensure_future(anext(batches))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                before = before | {waiting}
        assert asyncio.all_tasks() <= before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, r"needs batch_size=\.\.\."),
            ({"batch_size": 0}, "batch_size is 0; allowed: 1 or more"),
            ({"batch_size": 1, "max_concurrent_batches": 0}, "max_concurrent_batches is 0"),
            ({"batch_size": 1, "skip_batches": -1}, "skip_batches is -1; allowed: 0 or more"),
            ({"batch_size": 1, "max_exceptions": 1}, "did you mean 'max_batch_exceptions'"),
        ],
    )
    async def test_bad_options(self, options: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            await anext(art.trajectory_group_batches([], **options))
