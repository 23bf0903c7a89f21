"""What `model.log` leaves on disk."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from art_core.client.log import as_groups, read_parquet, sectioned, summary
from art_core.client.model import Model
from art_core.errors import ConfigError, StoreError
from art_core.run import RunDirectory
from art_core.trajectory import Trajectory, TrajectoryGroup
from tests.art_core.client.chat_endpoint import Body, chat_endpoint, completion
from tests.art_core.rollout import choice, group, trajectory

TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {}}}


def model(tmp_path: Path) -> Model[None]:
    return Model(name="agent", project="p", base_path=str(tmp_path))


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "p/models/agent/history.jsonl").read_text().splitlines()]


async def test_groups_come_back_whole_from_the_file_a_user_would_look_for(tmp_path: Path) -> None:
    rich = trajectory(
        choice([1, 2], [3, 4], policy_step=7), reward=0.5, metadata={"id": 1}, tools=[{"type": "function"}]
    )
    rich.messages_and_choices.append({"role": "user", "content": [{"type": "text", "text": "part"}]})
    rich.log("line")
    groups = [TrajectoryGroup([rich, ValueError("x")], metadata={"task": 3}, metrics={"g": 2.0}), group(1.0, 2.0)]
    await model(tmp_path).log(groups, "train", step=12)
    path = tmp_path / "p/models/agent/trajectories/train/0012.parquet"
    again = read_parquet(path)
    assert [g.model_dump() for g in again] == [g.model_dump() for g in groups]
    assert again[0].trajectories[0].messages_and_choices[1].model_extra["token_ids"] == [3, 4]


async def test_columns_are_there_for_analysis(tmp_path: Path) -> None:
    t = trajectory(choice([1], [2]), reward=0.5, metrics={"turns": 2})
    await model(tmp_path).log([TrajectoryGroup([t], metadata={"task": 3})], step=0)
    (row,) = pq.read_table(tmp_path / "p/models/agent/trajectories/val/0000.parquet").to_pylist()
    assert (row["group_index"], row["trajectory_index"], row["reward"]) == (0, 0, 0.5)
    assert (json.loads(row["metrics"]), json.loads(row["group_metadata"])) == ({"turns": 2}, {"task": 3})
    assert [(m["role"], m["content"], m["trainable"]) for m in row["messages"]] == [
        ("user", "and?", False),
        ("assistant", "said [2]", True),
    ]


async def test_a_line_of_history(tmp_path: Path) -> None:
    groups = [group(0.0, 1.0, metrics={"difficulty": 4.0}), TrajectoryGroup([Trajectory(reward=5.0), ValueError("x")])]
    groups[0].trajectories[1].metrics["turns"] = 3
    await model(tmp_path).log(groups, "train", metrics={"loss/train": 0.25, "accuracy": 1, "train/reward": 7.0}, step=2)
    await model(tmp_path).log(metrics={"time/step_wall_s": 1.5})
    first, second = lines(tmp_path)
    assert datetime.fromisoformat(first.pop("recorded_at")).tzinfo is not None
    assert first == {
        "train/reward": 7.0,
        "train/reward_std_dev": 0.5,
        "train/exception_rate": 0.25,
        "train/turns": 3.0,
        "train/group/difficulty": 4.0,
        "loss/train": 0.25,
        "train/accuracy": 1.0,
        "data/step_num_scenarios": 2.0,
        "data/step_num_trajectories": 4.0,
        "data/step_num_groups_submitted": 2.0,
        "data/step_num_groups_trainable": 1.0,
        "data/cum/num_scenarios": 2.0,
        "data/cum/num_trajectories": 4.0,
        "data/cum/num_groups_submitted": 2.0,
        "data/cum/num_groups_trainable": 1.0,
        "training_step": 2,
        "step": 2,
    }
    assert (second["time/step_wall_s"], second["training_step"]) == (1.5, 0)


async def test_trajectories_may_be_loose_and_hold_exceptions(tmp_path: Path) -> None:
    await model(tmp_path).log([Trajectory(reward=1.0), Trajectory(reward=2.0), ValueError("x")])
    (line,) = lines(tmp_path)
    assert line["val/reward"] == 1.5
    assert line["val/exception_rate"] == pytest.approx(1 / 3)


def test_one_group_is_a_list_of_one() -> None:
    one = group(1.0, metadata={"task": 1})
    assert as_groups(one) == [one]
    assert as_groups([]) == []


def test_the_mean_of_rewards_weighs_trajectories_not_groups() -> None:
    got = summary([group(0.0, 0.0, 0.0), group(1.0)], "val")
    assert got["val/reward"] == 0.25
    assert got["val/reward_std_dev"] == 0.0


def test_sections_keep_their_names() -> None:
    given = {"loss/train": 1, "data/step_x": 2, "judge/score": 3, "val/reward": 4, "reward": 5, "loss": 6}
    assert sectioned(given, "test") == {
        "loss/train": 1,
        "data/step_x": 2,
        "test/judge/score": 3,
        "val/reward": 4,
        "test/reward": 5,
        "test/loss": 6,
    }


async def test_logging_a_step_again_replaces_its_file(tmp_path: Path) -> None:
    for reward in (1.0, 2.0):
        await model(tmp_path).log([group(reward)], step=3)
    path = tmp_path / "p/models/agent/trajectories/val/0003.parquet"
    assert [t.reward for g in read_parquet(path) for t in g] == [2.0]
    assert len(lines(tmp_path)) == 2
    assert [p.name for p in path.parent.iterdir()] == ["0003.parquet"]


async def test_two_logs_under_way_at_once_don_t_write_history_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer stays inside until a second one enters too, or has had time to."""
    append, inside, overlap = RunDirectory.append_history, threading.Semaphore(1), threading.Event()

    def slow(run: RunDirectory, line: dict[str, Any]) -> None:
        if not inside.acquire(blocking=False):
            overlap.set()
            return
        overlap.wait(timeout=0.2)
        append(run, line)
        inside.release()

    monkeypatch.setattr(RunDirectory, "append_history", slow)
    await asyncio.gather(*(model(tmp_path).log(metrics={"n": n}, step=n) for n in range(2)))
    assert not overlap.is_set()
    assert sorted(line["val/n"] for line in lines(tmp_path)) == [0, 1]


async def test_what_is_no_number_stands_in_the_trajectories_alone(tmp_path: Path) -> None:
    await model(tmp_path).log([group(math.nan)], metrics={"loss/a": math.inf, "loss/b": 1.0})
    (line,) = lines(tmp_path)
    assert (line["loss/b"], line.keys() & {"val/reward", "loss/a"}) == (1.0, set())
    ((kept,),) = read_parquet(tmp_path / "p/models/agent/trajectories/val/0000.parquet")
    assert math.isnan(kept.reward)


async def test_a_recorded_chat_comes_back_whole_and_its_messages_are_a_column(tmp_path: Path) -> None:
    def answer(request: Body) -> Body:
        return completion("yes")

    with chat_endpoint(answer) as here, Trajectory(reward=1.0) as recorded:
        asked = Model(name="agent", project="p", inference_base_url=here.base_url, inference_api_key="k")
        question: Any = [{"role": "user", "content": "well?"}]
        await asked.openai_client().chat.completions.create(model="agent", messages=question, tools=[TOOL])
    await model(tmp_path).log([recorded])
    path = tmp_path / "p/models/agent/trajectories/val/0000.parquet"
    ((again,),) = read_parquet(path)
    assert again.exchanges == recorded.exchanges
    (row,) = pq.read_table(path).to_pylist()
    assert [(m["role"], m["content"]) for m in row["messages"]] == [("user", "well?"), ("assistant", "yes")]
    assert json.loads(row["tools"]) == [TOOL]


def test_a_metric_that_is_no_number_is_named() -> None:
    with pytest.raises(ConfigError, match="metric 'note' is 'good'; allowed: a number"):
        sectioned({"loss/train": 1.0, "note": "good"}, "train")  # type: ignore[dict-item]


async def test_nothing_to_log_writes_nothing_and_a_bad_split_is_refused(tmp_path: Path) -> None:
    await model(tmp_path).log()
    for split in ("../up", "a/b", ""):
        with pytest.raises(ConfigError, match=r"split is .*; allowed: a plain name"):
            await model(tmp_path).log([group(1.0)], split)
    assert list(tmp_path.iterdir()) == []


async def test_a_path_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file in the way")
    with pytest.raises(StoreError, match=f"can't log step 0: {tmp_path / 'p'}"):
        await model(tmp_path).log([group(1.0)])
