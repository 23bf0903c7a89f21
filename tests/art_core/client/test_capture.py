"""Trajectories that are recorded while an agent talks to its model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import art
from art_core.client.capture import trained_on
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


def trained_at(endpoint: ChatEndpoint, **config: Any) -> art.TrainableModel[None]:
    model = art.TrainableModel(name="agent", project="p", base_model="b", _internal_config=config)  # type: ignore[arg-type]
    model.inference_base_url, model.inference_api_key = endpoint.base_url, "k"
    return model


async def ask(agent: art.Model[Any], messages: list[Any], **options: Any) -> Any:
    reply = await agent.openai_client().chat.completions.create(messages=messages, **{"model": "agent", **options})
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
        art.current_trajectory(require=True).reward = 0.75
        return "what an agent returns is its own"

    trajectory = await art.trajectory(agent())
    assert trajectory.reward == 0.75
    assert said(trajectory.history()) == [
        ("system", "Be brief."),
        ("user", "1"),
        ("assistant", "answer 2"),
        ("user", "2"),
        ("assistant", "answer 4"),
        ("user", "3"),
        ("assistant", "answer 6"),
    ]
    choices = [item for item in trajectory.history().messages_and_choices if not isinstance(item, dict)]
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
    main, *others = trajectory.histories()
    assert [role for role, _ in said(main)] == ["user", "assistant", "user", "assistant"]
    assert sorted(said(each)[0][1] for each in others) == ["left", "plan", "right"]
    assert [each.tools for each in others if each.tools] == [TOOLS]


async def test_every_choice_of_one_request_is_its_own_chat(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)
    trajectory = await art.trajectory(ask(model, [{"role": "user", "content": "q"}], n=3))
    chats = trajectory.histories()
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
    assert [role for role, _ in said(trajectory.history())] == ["user", "assistant", "tool", "assistant"]
    assert trajectory.history().tools == TOOLS


async def test_two_agents_at_once_record_their_own(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)
    both = await art.trajectory_group(art.trajectory(ask(model, [{"role": "user", "content": c}])) for c in "ab")
    assert [said(each.history())[0][1] for each in both] == ["a", "b"]


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
    assert said(outer.history()) == [("user", "seen"), ("assistant", "answer 1")]
    assert said(inner.history())[0] == ("user", "nested")
    assert outer.metadata == {"task": 1}
    assert len(endpoint.requests) == 4


async def test_what_can_t_be_recorded_is_said(endpoint: ChatEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    model = model_at(endpoint)
    with art.Trajectory() as trajectory, caplog.at_level(logging.WARNING, "art.client"):
        await model.openai_client().chat.completions.with_raw_response.create(
            model="agent", messages=[{"role": "user", "content": "q"}]
        )
    assert "not recorded by the trajectory" in caplog.text
    assert not trajectory.exchanges


async def test_an_exchange_holds_what_was_sent_and_what_came_back(endpoint: ChatEndpoint) -> None:
    model = trained_at(endpoint, chat_template_kwargs={"date": "today"})
    messages: list[Any] = [{"role": "user", "content": "q"}]
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 3}
    trajectory = await art.trajectory(ask(model, messages, temperature=0.5, extra_body=extra))
    messages.append({"role": "user", "content": "later"})
    (exchange,) = trajectory.exchanges.chat_completions
    assert (
        exchange.request
        == endpoint.requests[0]
        == {
            "model": "agent",
            "messages": [{"role": "user", "content": "q"}],
            "temperature": 0.5,
            "top_k": 3,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "chat_template_kwargs": {"preserve_thinking": True, "date": "today", "enable_thinking": False},
        }
    )
    assert exchange.response.choices[0].model_extra == {"token_ids": [7, 0]}
    assert (exchange.model, exchange.response.model) == ("agent", "agent@4")
    assert exchange.start_time < exchange.end_time
    assert trajectory.messages_and_choices == []
    assert trajectory.messages() == [*messages[:1], {"role": "assistant", "content": "answer 1"}]
    again = art.Trajectory.model_validate_json(trajectory.model_dump_json())
    assert again.exchanges == trajectory.exchanges
    assert said(again.history()) == said(trajectory.history())


async def test_what_is_written_and_what_is_recorded_don_t_mix(endpoint: ChatEndpoint) -> None:
    text = "A trajectory cannot contain both exchanges and legacy histories"
    with art.Trajectory(messages_and_choices=[{"role": "user", "content": "q"}]) as trajectory:
        await ask(model_at(endpoint), trajectory.messages())
    with pytest.raises(TrajectoryError, match=text):
        trajectory.histories()
    with pytest.raises(ValueError, match=text):
        art.Trajectory(exchanges=trajectory.exchanges, tools=TOOLS)
    recorded = art.Trajectory(exchanges=trajectory.exchanges)
    with pytest.raises(ValueError, match=text):
        recorded.messages_and_choices = [{"role": "user", "content": "q"}]


async def test_several_chats_are_read_as_histories(endpoint: ChatEndpoint) -> None:
    model, judge = model_at(endpoint), model_at(endpoint)

    async def agent() -> None:
        await ask(model, [{"role": "user", "content": "q"}], model="agent@3")
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer 1"}]
        await ask(judge, [*messages, {"role": "user", "content": "good?"}], model="judge")
        await ask(model, [*messages, {"role": "user", "content": "go on"}], model="agent@4")

    trajectory = await art.trajectory(agent())
    assert [len(history.messages_and_choices) for history in trajectory.histories()] == [4, 4]
    assert said(trajectory.history(model="agent@9"))[2] == ("user", "go on")
    for read in (trajectory.history, trajectory.messages):
        with pytest.raises(TrajectoryError, match=r"has 2 chats, not one; read histories\(\)"):
            read()
    assert len(trajectory.for_logging()["exchanges"]["chat_completions"]) == 3

    (group,) = trained_on([art.TrajectoryGroup([trajectory], metadata={"task": 1})], "agent")
    assert [exchange.model for exchange in group.trajectories[0].exchanges.chat_completions] == ["agent@3", "agent@4"]
    assert group.metadata == {"task": 1}
    assert len(trajectory.exchanges.chat_completions) == 3
    with pytest.raises(TrajectoryError, match="nothing of 'other', only of agent@3, agent@4, judge"):
        trained_on([art.TrajectoryGroup([trajectory])], "other")
    written = art.TrajectoryGroup([art.Trajectory()])
    assert trained_on([written], "other") == [written]


async def test_what_is_no_list_of_groups_is_named() -> None:
    group = art.TrajectoryGroup([art.Trajectory()])
    gathering = art.gather_trajectory_groups([])
    for given, seen in (
        (group, "holds a Trajectory"),
        ([*group], "holds a Trajectory"),
        ([group, None], "holds a NoneType"),
        (None, "is a NoneType"),
        (gathering, "is a coroutine"),
    ):
        with pytest.raises(TrajectoryError, match=f"trajectory_groups {seen}; allowed: a list of art.TrajectoryGroup"):
            trained_on(given, "agent")  # type: ignore[arg-type]
    await gathering


async def test_a_group_s_rollouts_are_not_part_of_the_trajectory_around_it(endpoint: ChatEndpoint) -> None:
    model = model_at(endpoint)

    async def rollout() -> art.Trajectory:
        assert art.current_trajectory() is None
        await ask(model, [{"role": "user", "content": "rollout"}])
        return art.Trajectory()

    async def agent() -> None:
        await art.trajectory_group([rollout()])
        await ask(model, [{"role": "user", "content": "own"}])

    assert said((await art.trajectory(agent())).history())[0] == ("user", "own")


async def test_a_copy_of_the_client_records_too(endpoint: ChatEndpoint) -> None:
    client = model_at(endpoint).openai_client().with_options(max_retries=0)
    with art.Trajectory() as trajectory:
        await client.chat.completions.create(model="agent", messages=[{"role": "user", "content": "q"}])
    assert trajectory.exchanges


def test_blocks_end_in_order() -> None:
    outer, inner = art.Trajectory(), art.Trajectory()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(TrajectoryError, match="overlap; end the inner one first"):
        outer.__exit__()
    inner.__exit__()
    outer.__exit__()


async def test_misuse_is_named(endpoint: ChatEndpoint) -> None:
    task = asyncio.ensure_future(asyncio.sleep(0))
    with pytest.raises(TrajectoryError, match=r"got a Task; allowed: a coroutine that has not been started"):
        await art.trajectory(task)  # type: ignore[arg-type]
    await task
    with pytest.raises(TrajectoryError, match="no trajectory is recording"):
        art.current_trajectory(require=True)
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
