"""What a run has taken: per step, rolled up, and summed over restarts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from art_core.client.account import Account, charged, counted, cumulative_name
from art_core.client.model import Model
from art_core.trajectory import TrajectoryGroup
from tests.art_core.rollout import group


@pytest.mark.parametrize(
    ("name", "cumulative"),
    [
        ("time/step_wall_s", "time/cum/wall_s"),
        ("time/step_train_s", "time/cum/train_s"),
        ("data/step_num_scenarios", "data/cum/num_scenarios"),
        ("data/step_trainable_tokens", "data/cum/trainable_tokens"),
        ("costs/gpu", "costs/cum/gpu"),
        ("costs/train/llm_judge", "costs/cum/train/llm_judge"),
        ("data/step_policy_lag_mean", None),
        ("time/wall_clock_sec", None),
        ("costs/cum/gpu", None),
        ("loss/step_train_s", None),
        ("train/reward", None),
    ],
)
def test_what_is_summed(name: str, cumulative: str | None) -> None:
    assert cumulative_name(name) == cumulative


def test_costs_are_rolled_up() -> None:
    line = {"costs/gpu": 1.0, "costs/train/llm_judge/a": 2.0, "costs/train/llm_judge/b": 3.0, "costs/eval/x": 4.0}
    got = Account().sums(line, list)
    assert {key: value for key, value in got.items() if "/cum/" not in key} == {
        "costs/all": 10.0,
        "costs/train": 5.0,
        "costs/train/llm_judge": 5.0,
        "costs/eval": 4.0,
    }
    assert (got["costs/cum/all"], got["costs/cum/gpu"], got["costs/cum/train"]) == (10.0, 1.0, 5.0)


def test_a_sum_that_the_caller_gives_is_left_as_it_is() -> None:
    got = Account().sums({"costs/gpu": 1.0, "costs/all": 7.0, "data/step_num_a": 1.0, "data/cum/num_a": 9.0}, list)
    assert "data/cum/num_a" not in got
    assert ("costs/all" in got, got["costs/cum/all"]) == (False, 7.0)


def test_a_step_takes_from_one_log_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 106.0, 111.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    account = Account(gpu_cost_per_hour_usd=3.0)
    assert account.step() == {}, "nothing is known before the model is registered"
    account.start()
    assert account.step() == {"time/step_wall_s": 6.0, "costs/gpu": pytest.approx(6.0 * 3.0 / 3600.0)}
    account.gpu_cost_per_hour_usd = None
    assert account.step() == {"time/step_wall_s": 5.0}


def test_what_groups_hold() -> None:
    groups = [group(0.0, 1.0), group(1.0, 1.0), TrajectoryGroup([ValueError("x")])]
    assert counted(groups, "train") == {
        "data/step_num_scenarios": 3.0,
        "data/step_num_trajectories": 5.0,
        "data/step_num_groups_submitted": 3.0,
        "data/step_num_groups_trainable": 1.0,
    }
    assert counted(groups, "val") == {
        "val/data/step_num_scenarios": 3.0,
        "val/data/step_num_trajectories": 5.0,
        "val/data/step_num_groups_submitted": 3.0,
    }


def test_what_trajectories_cost_is_summed() -> None:
    first, second = group(0.0, 1.0, metrics={"costs/judge": 0.5, "size": 2}), group(1.0)
    for each in (*first, *second):
        each.metrics |= {"costs/tools/search": 0.25, "turns": 3}
    assert charged([first, second]) == {"costs/judge": 0.5, "costs/tools/search": 0.75}


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "p/models/agent/history.jsonl").read_text().splitlines()]


async def test_sums_go_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):  # each a new process, as it were
        model = Model(name="agent", project="p", base_path=str(tmp_path))
        for _ in range(2):
            await model.log([group(0.0, 1.0)], "train", metrics={"costs/gpu": 0.5, "time/step_train_s": 2.0})
        await model.log([group(0.0, 1.0)], "val")
    seen = [(line.get("data/cum/num_trajectories"), line.get("costs/cum/gpu")) for line in lines(tmp_path)]
    assert seen == [(2, 0.5), (4, 1.0), (None, None), (6, 1.5), (8, 2.0), (None, None)]
    assert lines(tmp_path)[4]["time/cum/train_s"] == 8.0


async def test_a_training_step_s_wall_time_and_cost_are_logged(tmp_path: Path) -> None:
    model = Model(name="agent", project="p", base_path=str(tmp_path))
    model._account.gpu_cost_per_hour_usd = 3600.0
    model._account.start()
    await model.log([group(0.0, 1.0)], "train", metrics={"time/step_wall_s": 5.0})
    await model.log([group(0.0, 1.0)], "val")
    first, second = lines(tmp_path)
    assert first["time/step_wall_s"] == 5.0, "what the caller measured wins"
    assert 0 < first["costs/gpu"] == first["costs/all"] == first["costs/cum/gpu"] < 60
    assert not [key for key in second if key.startswith(("costs", "time", "data"))]


async def test_different_scenarios_are_counted_over_restarts(tmp_path: Path) -> None:
    def named(scenario: object) -> TrajectoryGroup:
        return TrajectoryGroup(group(0.0, 1.0).trajectories, metadata={"scenario_id": scenario})

    for _ in range(2):  # each a new process, as it were
        model = Model(name="agent", project="p", base_path=str(tmp_path))
        await model.log([named("a"), named(7)], "train")
        loose = group(0.0)
        loose.trajectories[0].metadata["scenario_id"] = "b"
        model.metrics_builder("train").add_data(scenario_ids=["a", "c"])
        model.metrics_builder("eval").add_data(scenario_ids=["x"])
        await model.log([named("a"), loose], "train")
        await model.log([named("y")], "val")
        await model.log([group(0.0)], "train")
    seen = [line.get("data/cum/num_unique_scenarios") for line in lines(tmp_path)]
    assert seen == [2, 4, None, None, 4, 4, None, None]


async def test_a_list_of_scenarios_that_a_kill_cut_short_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "p/models/agent/scenarios.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('["a"]\n["b", "c')
    model = Model(name="agent", project="p", base_path=str(tmp_path))
    await model.log([TrajectoryGroup(group(0.0).trajectories, metadata={"scenario_id": "b"})], "train")
    assert lines(tmp_path)[0]["data/cum/num_unique_scenarios"] == 2
    assert path.read_text() == '["a"]\n["b"]\n'
