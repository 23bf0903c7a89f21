"""Trajectories: what users append, log, dump and await."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle

import numpy as np
import pytest
from openai.types.chat.chat_completion import Choice

from art_core.errors import TrajectoryError
from art_core.trajectory import History, PendingGroup, Trajectory, TrajectoryGroup
from tests.art_core.rollout import choice, group, trajectory


def test_a_dict_with_message_is_a_choice_and_any_other_stays_a_message() -> None:
    sampled = choice([1], [2])
    question = {"role": "user", "content": "q", "extra": {"kept": [1]}}
    t = Trajectory(messages_and_choices=[question, sampled, sampled.model_dump()])
    assert t.messages_and_choices[0] == question
    assert t.messages_and_choices[1] is sampled
    assert isinstance(t.messages_and_choices[2], Choice)
    assert t.messages_and_choices[2].model_extra == sampled.model_extra


def test_messages_can_be_sent_back_to_a_chat_endpoint() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    silent = Choice.model_validate(
        {"finish_reason": "tool_calls", "index": 0, "message": {"role": "assistant", "tool_calls": [call]}}
    )
    t = Trajectory(messages_and_choices=[{"role": "user", "content": "q"}, silent, choice([1], [2])])
    assert t.messages() == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "said [2]"},
    ]
    json.dumps(t.messages())


def test_appending_what_is_neither_message_nor_choice_is_named_when_it_is_read() -> None:
    t = trajectory(choice([1], [2]))
    t.messages_and_choices.append(choice([1], [2]).message)  # type: ignore[arg-type]
    with pytest.raises(TrajectoryError, match=r"ChatCompletionMessage; allowed: .*the Choice itself"):
        t.messages()


def test_a_misspelt_field_is_said() -> None:
    with pytest.warns(
        UserWarning, match="no field 'messages_and_choice', left out; did you mean 'messages_and_choices'"
    ):
        Trajectory(messages_and_choice=[{"role": "user", "content": "q"}], reward=1)  # type: ignore[call-arg]


def test_dump_drops_defaults_and_comes_back_equal() -> None:
    assert Trajectory().model_dump() == {}
    assert "reward" in Trajectory().model_dump(exclude_defaults=False)
    t = trajectory(choice([1], [2]), reward=0.5, metadata={"k": None}, additional_histories=[History(tools=[{"a": 1}])])
    t.log("line")
    dumped = t.model_dump()
    assert dumped.keys() == {"messages_and_choices", "reward", "metadata", "additional_histories", "logs"}
    assert "start_time" not in t.model_dump(exclude_defaults=False)
    assert Trajectory.model_validate_json(t.model_dump_json()).model_dump() == dumped
    assert dumped["messages_and_choices"][1]["token_ids"] == [2]


def test_lists_of_two_trajectories_are_not_shared() -> None:
    first, second = Trajectory(), Trajectory()
    first.messages_and_choices.append({"role": "user", "content": "q"})
    first.metrics["m"] = 1
    assert second.messages_and_choices == [] and second.metrics == {}


def test_what_is_assigned_is_checked_and_rewards_may_come_from_numpy() -> None:
    t = Trajectory(metadata={"nested": {"list": [1]}})
    for reward in (np.float32(0.5), np.float64(0.5), True, 1):
        t.reward = reward  # type: ignore[assignment]
        assert type(t.reward) is float
    with pytest.raises(ValueError, match="reward"):
        t.reward = None  # type: ignore[assignment]
    assert Trajectory.model_validate_json(t.model_dump_json()).metadata == {"nested": {"list": [1]}}


async def test_durations() -> None:
    t = Trajectory()
    async with t.track_duration("tool"):
        await asyncio.sleep(0)
    once = t.metrics["tool_duration"]
    with pytest.raises(KeyError):
        async with t.track_duration("tool"):
            raise KeyError
    assert 0 < once < t.metrics["tool_duration"]
    assert t.finish() is t
    assert t.metrics["duration"] >= t.metrics["tool_duration"]


def test_for_logging_says_what_is_trained_on() -> None:
    logged = trajectory(choice([1], [2]), reward=2.0).for_logging()
    assert [m["trainable"] for m in logged["messages"]] == [False, True]
    assert logged["reward"] == 2.0
    assert {"initial_policy_version", "final_policy_version"} < logged.keys()


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_bad_reward_is_accepted_until_training(reward: float) -> None:
    assert not math.isfinite(Trajectory(reward=reward).reward)


class TestGroup:
    """Groups of trajectories, given or awaited."""

    def test_is_iterable_and_sized_and_holds_the_same_trajectories(self) -> None:
        given = [trajectory(choice([1], [2])) for _ in range(3)]
        for source in (given, tuple(given), iter(given), (t for t in given)):
            made = TrajectoryGroup(source, metadata={"task": 7}, metrics={"m": 1.0}, logs=["l"])
            assert len(made) == 3
            assert all(a is b for a, b in zip(made, given, strict=True))
            assert (made.metadata, made.metrics, made.logs) == ({"task": 7}, {"m": 1.0}, ["l"])

    def test_exceptions_are_kept_as_text(self) -> None:
        try:
            raise ValueError("boom")
        except ValueError as error:
            raised = error
        made = TrajectoryGroup([Trajectory(), raised], exceptions=[KeyError("k")])
        assert len(made) == 1
        assert [e.type for e in made.exceptions] == ["ValueError", "KeyError"]
        assert made.exceptions[0].message == "boom"
        assert "test_exceptions_are_kept_as_text" in made.exceptions[0].traceback
        again = TrajectoryGroup.model_validate(made.model_dump())
        assert again.exceptions == made.exceptions and len(again) == 1

    def test_copies_and_pickles(self) -> None:
        made = group(0.0, 1.0, metadata={"task": 1})
        for again in (copy.deepcopy(made), made.model_copy(), pickle.loads(pickle.dumps(made))):
            assert [t.reward for t in again] == [0.0, 1.0] and again.metadata == {"task": 1}

    def test_empty(self) -> None:
        assert len(TrajectoryGroup()) == len(TrajectoryGroup([])) == 0
        assert TrajectoryGroup().model_dump() == {}

    async def test_awaitables_give_a_group_when_awaited_in_the_order_given(self) -> None:
        released = asyncio.Event()

        async def rollout(reward: float) -> Trajectory:
            if reward == 0:
                await released.wait()  # ends last, stands first
            else:
                released.set()
            return Trajectory(reward=reward)

        pending = TrajectoryGroup((rollout(r) for r in (0.0, 1.0)), metadata={"task": 3})
        assert isinstance(pending, PendingGroup)
        made = await pending
        assert isinstance(made, TrajectoryGroup)
        assert [t.reward for t in made] == [0.0, 1.0] and made.metadata == {"task": 3}

    async def test_outside_a_gathering_the_first_exception_is_raised_and_the_others_are_cancelled(self) -> None:
        cancelled = asyncio.Event()

        async def endless() -> Trajectory:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return Trajectory()

        async def failing() -> Trajectory:
            raise ValueError("boom")

        with pytest.raises(ValueError, match="boom"):
            await TrajectoryGroup(each() for each in (endless, failing))
        assert cancelled.is_set()

    async def test_a_pending_group_is_a_coroutine(self) -> None:
        async def rollout() -> Trajectory:
            await asyncio.sleep(0)
            return Trajectory(reward=1.0)

        task = asyncio.create_task(PendingGroup([rollout(), rollout()], {"metadata": {"task": 3}}))
        assert [t.reward for t in await task] == [1.0, 1.0]
        started: list[int] = []

        async def unstarted() -> Trajectory:
            started.append(1)
            return Trajectory()

        PendingGroup([unstarted()], {}).close()
        assert started == []

    def test_lines_are_logged(self) -> None:
        made = TrajectoryGroup(logs=["first"])
        made.log("second")
        assert made.logs == ["first", "second"]

    async def test_a_rollout_that_forgets_to_return_is_named(self) -> None:
        async def forgetful() -> None:
            """Returns nothing."""

        with pytest.raises(TrajectoryError, match=r"a NoneType; it must return an art\.Trajectory"):
            await TrajectoryGroup([forgetful()])  # type: ignore[list-item]
