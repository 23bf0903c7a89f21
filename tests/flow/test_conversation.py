"""Conversations of many turns with tools, from the client over the engine into a training step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.chat_completion import Choice

import art
from art.local import LocalBackend
from art_core.client.log import read_parquet
from art_core.trajectory import as_item
from tests.tool_model import ADD, ROUNDS, TOOL_TEMPLATE, question, result, spoken

FORGETFUL = TOOL_TEMPLATE.replace("message.content }}", "message.content if loop.last else message.content | upper }}")
"""Rewrites the past: every message but the last is shown in capitals."""


async def rollout(
    model: art.TrainableModel, rounds: int, reward: float, shown: Sequence[Any] = (), **sampling: Any
) -> art.Trajectory:
    """One question after another, the tool's results sent back; `shown` are rounds that come before."""
    trajectory = art.Trajectory(
        messages_and_choices=[*shown, question(len(shown) // 4 + 1)], tools=[ADD], reward=reward
    )
    client = model.openai_client()
    while len(trajectory.messages_and_choices) <= len(shown) + 4 * rounds:
        completion = await client.chat.completions.create(
            model=model.get_inference_name(),
            messages=trajectory.messages(),
            tools=trajectory.tools,
            max_tokens=100,
            **sampling,
        )
        choice = completion.choices[0]
        trajectory.messages_and_choices.append(choice)
        calls = choice.message.tool_calls or []
        if calls:
            trajectory.messages_and_choices += [result(call.model_dump()) for call in calls]
        else:
            trajectory.messages_and_choices.append(question(len(trajectory.messages_and_choices) // 4 + 1))
    return trajectory


def choices(trajectory: art.Trajectory) -> list[Choice]:
    return [item for item in map(as_item, trajectory.messages_and_choices) if isinstance(item, Choice)]


async def group(model: art.TrainableModel, rounds: int, **sampling: Any) -> art.TrajectoryGroup:
    return await art.trajectory_group(rollout(model, rounds, reward, **sampling) for reward in (0.0, 1.0))


async def test_a_conversation_with_tools_trains_as_one_sequence(tmp_path: Path, tool_model: Path) -> None:
    model = art.TrainableModel(
        name="adder", project="tests", base_model=str(tool_model), lora_config={"rank": 2, "alpha": 2}
    )
    async with LocalBackend(path=tmp_path, engine="torch", trainer="torch") as backend:
        await model.register(backend)
        groups = [await group(model, ROUNDS, temperature=0)]
        for trajectory in groups[0]:
            turns = choices(trajectory)
            assert len(turns) == 2 * ROUNDS
            for number in range(ROUNDS):
                call, answer = turns[2 * number : 2 * number + 2]
                assert call.finish_reason == "tool_calls" and call.message.tool_calls
                assert answer.message.content == spoken(number + 1)[1]
        trained = await backend.train(model, groups, learning_rate=1e-6)
        await model.log(groups, split="train", metrics=trained.metrics, step=trained.step)
    metrics = trained.metrics
    assert metrics["data/step_num_sequences"] == metrics["data/step_num_trajectories"] == 2
    assert metrics["data/step_history_splits"] == 0
    sampled = sum(len(turn.model_extra["token_ids"]) for t in groups[0] for turn in choices(t))
    assert metrics["data/step_trainable_tokens"] == sampled
    assert metrics["offpolicy/engine_logprob_gap"] <= 1e-3
    check_log(tmp_path / "tests/models/adder/trajectories/train/0001.parquet", groups[0])


def check_log(path: Path, logged: art.TrajectoryGroup) -> None:
    """Calls, results and messages without content come back out of parquet as they were."""
    import pyarrow.parquet as pq

    (read,) = read_parquet(path)
    assert [t.model_dump() for t in read] == [t.model_dump() for t in logged]
    rows = pq.read_table(path, columns=["messages", "tools"]).to_pylist()
    assert '"name": "add"' in rows[0]["tools"]
    called, answered = rows[0]["messages"][5], rows[0]["messages"][6]
    assert called["trainable"] and called["content"] == "" and '"name": "add"' in called["tool_calls"]
    assert answered["role"] == "tool" and answered["tool_call_id"] in called["tool_calls"]


async def test_a_template_that_rewrites_the_past_is_counted(tmp_path: Path, tool_model: Path) -> None:
    (tmp_path / "chat.jinja").write_text(FORGETFUL)
    model = art.TrainableModel(
        name="forgetful",
        project="tests",
        base_model=str(tool_model),
        lora_config={"rank": 2, "alpha": 2},
        _internal_config={
            "chat_template_path": str(tmp_path / "chat.jinja"),
            "chat_template_kwargs": {"greeting": "Call!"},
        },
    )
    async with LocalBackend(path=tmp_path, engine="torch", trainer="torch") as backend:
        await model.register(backend)
        two = [await group(model, 1, temperature=0)]
        prompt = two[0].trajectories[0].messages_and_choices[1].model_extra["prompt_token_ids"]
        trained = await backend.train(model, two, learning_rate=1e-6)
    metrics = trained.metrics
    turns = sum(len(choices(t)) for t in two[0])
    assert turns > 2
    assert metrics["data/step_num_sequences"] == turns
    assert metrics["data/step_history_splits"] == turns - 2
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(tool_model).decode(prompt)
    assert text.startswith("<|im_start|>system\nCall!{")


@pytest.mark.parametrize("content", [None, "", "Hm."])
async def test_messages_without_content_are_messages(content: str | None, tmp_path: Path) -> None:
    """A message a program wrote itself, with OpenAI's null, in every place that shows it."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    written: Any = {"role": "assistant", "content": content, "tool_calls": [call]}
    trajectory = art.Trajectory(messages_and_choices=[question(1), written], tools=[ADD])
    assert trajectory.messages()[1] == written
    assert trajectory.for_logging()["messages"][1]["content"] == content
    from art_core.client.log import write_parquet

    write_parquet([art.TrajectoryGroup([trajectory])], tmp_path / "t.parquet")
    ((read,),) = read_parquet(tmp_path / "t.parquet")
    assert read.messages_and_choices == trajectory.messages_and_choices


def shown_round(number: int) -> list[Any]:
    """A question, a call, its result and an answer, for a model to go on from."""
    function = {"name": "add", "arguments": json.dumps({"a": number, "b": number + 1})}
    call = {"id": f"shown-{number}", "type": "function", "function": function}
    said: Any = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [question(number), said, result(call), {"role": "assistant", "content": f"It is {2 * number + 1}."}]


@pytest.mark.real
@pytest.mark.heavy
async def test_a_real_model_is_shown_tools_by_another_template_than_its_own(tmp_path: Path, real_model: Path) -> None:
    """A 135M model whose own template knows no tools goes on as three rounds before showed it, for twelve turns."""
    model = art.TrainableModel(
        name="smol",
        project="tests",
        base_model=str(real_model),
        _internal_config={"chat_template": TOOL_TEMPLATE},
    )
    shown = [message for number in (1, 2, 3) for message in shown_round(number)]
    async with LocalBackend(path=tmp_path, engine="torch", trainer="torch") as backend:
        await model.register(backend)
        groups = [await group(model, ROUNDS, shown=shown, temperature=0)]
        trained = await backend.train(model, groups, learning_rate=1e-5)
    for trajectory in groups[0]:
        reasons = [turn.finish_reason for turn in choices(trajectory)]
        assert reasons == ["tool_calls", "stop"] * ROUNDS
    assert trained.metrics["publish/proved"] == 1.0
    assert trained.metrics["data/step_num_sequences"] == 2
    assert trained.metrics["data/step_history_splits"] == 0
    assert trained.metrics["offpolicy/engine_logprob_gap"] <= 1e-3
