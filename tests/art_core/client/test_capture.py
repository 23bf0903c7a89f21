"""Trajectories that are recorded while an agent talks to its model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import art
from art_core.errors import LocalServingUnavailableError, TrajectoryError
from tests.art_core.client.chat_endpoint import Body, ChatEndpoint, chat_endpoint, completion

TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    """Answers how many messages it was sent."""

    def answer(request: Body) -> Body:
        return completion(*[f"answer {len(request['messages'])}"] * request.get("n", 1))

    with chat_endpoint(answer) as here:
        yield here


def model_at(endpoint: ChatEndpoint) -> art.Model[None]:
    return art.Model(name="agent", project="p", inference_base_url=endpoint.base_url, inference_api_key="k")


async def ask(model: art.Model[None], messages: list[Any], **options: Any) -> Any:
    reply = await model.openai_client().chat.completions.create(model="agent", messages=messages, **options)
    return reply.choices[0]


def said(history: art.History) -> list[tuple[str, str]]:
    return [(message["role"], str(message["content"])) for message in history.messages()]


async def test_an_agent_needs_to_write_nothing_but_its_reward(endpoint: ChatEndpoint) -> None:
    """As the reference documents it, in three turns; the answer goes back as object, dump and plain dict."""
    model = model_at(endpoint)

    async def agent() -> str:
        messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1"}]
        messages.append((await ask(model, messages)).message)
        messages.append({"role": "user", "content": "2"})
        messages.append((await ask(model, messages)).message.model_dump())
        messages.append({"role": "user", "content": "3"})
        await ask(model, messages)
        art.current_trajectory(required=True).reward = 0.75
        return "what an agent returns is its own"

    trajectory = await art.trajectory(agent())
    assert trajectory.reward == 0.75
    assert trajectory.additional_histories == []
    assert said(trajectory) == [
        ("system", "Be brief."),
        ("user", "1"),
        ("assistant", "answer 2"),
        ("user", "2"),
        ("assistant", "answer 4"),
        ("user", "3"),
        ("assistant", "answer 6"),
    ]
    choices = [item for item in trajectory.messages_and_choices if not isinstance(item, dict)]
    assert [choice.model_extra["token_ids"] for choice in choices] == [[7, 0]] * 3
    assert trajectory.metrics["duration"] >= 0
    assert art.current_trajectory() is None


async def test_another_chat_is_a_further_history(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)

    async def agent() -> None:
        first: list[Any] = [{"role": "user", "content": "plan"}]
        reply = await ask(model, first)
        await asyncio.gather(*(ask(model, [{"role": "user", "content": name}]) for name in ("left", "right")))
        await ask(model, [*first, reply.message, {"role": "user", "content": "sum up"}])
        await ask(model, first, tools=TOOLS)

    trajectory = await art.trajectory(agent())
    assert [role for role, _ in said(trajectory)] == ["user", "assistant", "user", "assistant"]
    others = trajectory.additional_histories
    assert sorted(said(each)[0][1] for each in others) == ["left", "plan", "right"]
    assert [each.tools for each in others if each.tools] == [TOOLS]


async def test_every_choice_of_one_request_is_its_own_chat(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)
    trajectory = await art.trajectory(ask(model, [{"role": "user", "content": "q"}], n=3))
    chats = [trajectory, *trajectory.additional_histories]
    assert [chat.messages_and_choices[-1].index for chat in chats] == [0, 1, 2]  # type: ignore[union-attr]


async def test_tool_calls_continue_a_chat() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answers = iter([completion(None, tool_calls=[call]), completion("found")])
    with chat_endpoint(lambda request: next(answers)) as here:
        model = model_at(here)

        async def agent() -> None:
            messages: list[Any] = [{"role": "user", "content": "where?"}]
            messages.append((await ask(model, messages, tools=TOOLS)).message)
            messages.append({"role": "tool", "tool_call_id": "c1", "content": "here"})
            await ask(model, messages, tools=TOOLS)

        trajectory = await art.trajectory(agent())
    assert [role for role, _ in said(trajectory)] == ["user", "assistant", "tool", "assistant"]
    assert (trajectory.additional_histories, trajectory.tools) == ([], TOOLS)


async def test_two_agents_at_once_record_their_own(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)
    both = await art.trajectory_group(art.trajectory(ask(model, [{"role": "user", "content": c}])) for c in "ab")
    assert [said(each)[0][1] for each in both] == ["a", "b"]


async def test_a_block_records_and_no_capture_hides(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)
    with art.Trajectory(metadata={"task": 1}) as outer:
        await ask(model, [{"role": "user", "content": "seen"}])
        with art.no_capture():
            assert art.current_trajectory() is None
            await ask(model, [{"role": "user", "content": "judge"}])
            with art.Trajectory() as inner:
                await ask(model, [{"role": "user", "content": "nested"}])
        assert art.current_trajectory() is outer
    await ask(model, [{"role": "user", "content": "after"}])
    assert said(outer) == [("user", "seen"), ("assistant", "answer 1")]
    assert said(inner)[0] == ("user", "nested")
    assert outer.metadata == {"task": 1}
    assert len(endpoint.requests) == 4


async def test_what_can_t_be_recorded_is_said(endpoint: ChatEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    model = model_at(endpoint)
    with art.Trajectory() as trajectory, caplog.at_level(logging.WARNING, "art.client"):
        await model.openai_client().chat.completions.with_raw_response.create(
            model="agent", messages=[{"role": "user", "content": "q"}]
        )
    assert "not recorded by the trajectory" in caplog.text
    assert trajectory.messages_and_choices == []


async def test_misuse_is_named(endpoint: ChatEndpoint) -> None:
    task = asyncio.ensure_future(asyncio.sleep(0))
    with pytest.raises(TrajectoryError, match=r"got a Task; allowed: a coroutine that has not been started"):
        await art.trajectory(task)  # type: ignore[arg-type]
    await task
    with pytest.raises(TrajectoryError, match="no trajectory is recording"):
        art.current_trajectory(required=True)
    with pytest.raises(TrajectoryError, match="nobody waits for a trajectory"):
        art.yield_trajectory(art.Trajectory())


async def test_a_trajectory_can_be_handed_out_of_code_that_returns_something_else() -> None:
    async def benchmark(yields: bool) -> str:
        if yields:
            art.yield_trajectory(art.Trajectory(reward=1.0))
            art.yield_trajectory(art.Trajectory(reward=2.0))
        return "a score"

    assert (await art.capture_yielded_trajectory(benchmark(True))).reward == 2.0
    with pytest.raises(TrajectoryError, match=r"ended without art\.yield_trajectory"):
        await art.capture_yielded_trajectory(benchmark(False))


async def test_an_address_of_a_closed_backend_is_told_from_a_provider_s(endpoint: ChatEndpoint) -> None:
    nowhere = "http://127.0.0.1:9/v1"
    trained = art.TrainableModel(name="agent", project="p", base_model="b")
    trained.inference_base_url, trained.inference_api_key = nowhere, "k"
    client = trained.openai_client()
    client.max_retries = 0
    with pytest.raises(LocalServingUnavailableError, match=r"127\.0\.0\.1:9/v1/ can't be reached.*register"):
        await client.chat.completions.create(model="agent", messages=[{"role": "user", "content": "q"}])
    other = art.Model(name="gpt", project="p", inference_base_url=nowhere, inference_api_key="k").openai_client()
    other.max_retries = 0
    from openai import APIConnectionError

    with pytest.raises(APIConnectionError):
        await other.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "q"}])
