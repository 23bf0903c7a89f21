"""Metrics that a program adds while a step is under way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import art
from art_core.client.metric import MetricsBuilder
from art_core.errors import ConfigError
from art_core.run import LogRecord
from tests.art_core.client.chat_endpoint import ChatEndpoint, chat_endpoint, completion
from tests.art_core.rollout import group


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    with chat_endpoint(lambda request: completion(*["x"] * request.get("n", 1)) | {"usage": usage}) as here:
        yield here


def trainable(tmp_path: Path, endpoint: ChatEndpoint | None = None) -> art.TrainableModel[None]:
    model = art.TrainableModel(name="agent", project="p", base_model="b", base_path=str(tmp_path))
    if endpoint is not None:
        model.inference_base_url, model.inference_api_key = endpoint.base_url, "k"
    return model


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "p/models/agent/history.jsonl").read_text().splitlines()]


async def test_what_is_added_stands_in_the_next_line_of_its_split(tmp_path: Path) -> None:
    model = trainable(tmp_path)
    builder = model.metrics_builder()
    builder.add_cost("train/judge", 0.5)
    builder.add_cost("train/judge", 0.25)
    builder.add_data(step_num_scenarios=7, step_rollout_tokens=100, scenario_ids=["a"])
    builder.add_user_timing(step_rollout_s=3.0)
    builder.add_idle_times(step_trainer_idle_s=1.0)
    builder.add_metric("time/step_tool_s", 2.0)
    with pytest.raises(KeyError), builder.measure("time/step_eval_s"):
        raise KeyError
    model.metrics_builder("eval").add_cost("eval/judge", 4.0)
    await model.log([group(0.0, 1.0)], "train", metrics={"costs/train/judge": 1.0}, step=1)
    await model.log([group(1.0)], "test", step=1)
    await model.log([group(0.0, 1.0)], "train", step=2)
    train, test, second = lines(tmp_path)
    assert train["costs/train/judge"] == 1.75 == train["costs/all"] == train["costs/cum/train/judge"]
    assert (train["data/step_num_scenarios"], train["data/step_rollout_tokens"]) == (8.0, 100.0)
    assert (train["time/step_rollout_s"], train["time/cum/rollout_s"]) == (3.0, 3.0)
    assert (train["time/step_trainer_idle_s"], train["time/step_tool_s"]) == (1.0, 2.0)
    assert (train["time/step_eval_s"] >= 0, train["data/cum/num_unique_scenarios"]) == (True, 1.0)
    assert (test["costs/eval/judge"], test["costs/cum/all"]) == (4.0, 5.75)
    assert not [key for key in second if key.startswith("costs/") and "/cum/" not in key]


async def test_a_wall_time_that_was_added_is_not_counted_twice(tmp_path: Path) -> None:
    model = trainable(tmp_path)
    model._account.start()
    model.metrics_builder().add_user_timing(step_wall_s=5.0)
    await model.log([group(1.0)], "train", step=1)
    assert lines(tmp_path)[0]["time/step_wall_s"] == 5.0


@pytest.mark.parametrize("key", ["reward", "/x", "costs/", "costs/cum/all"])
def test_a_name_that_can_t_be_added_to(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be added to; allowed: '<section>/<name>'"):
        trainable(tmp_path).metrics_builder().add_metric(key, 1.0)
    with pytest.raises(ConfigError, match="cost_context is ' '"):
        trainable(tmp_path).metrics_builder(" ")


def test_the_active_builder(tmp_path: Path) -> None:
    model = trainable(tmp_path)
    with pytest.raises(LookupError):
        MetricsBuilder.get_active()
    token = model.activate_metrics_context("eval")
    assert MetricsBuilder.get_active().cost_context == "eval"
    with model.metrics_builder("train").activate_context() as inner:
        assert MetricsBuilder.get_active() is inner
        assert inner.for_cost_context("eval").cost_context == "eval"
    token.var.reset(token)
    with pytest.raises(LookupError):
        MetricsBuilder.get_active()


async def test_completions_are_charged_to_the_active_builder(tmp_path: Path, endpoint: ChatEndpoint) -> None:
    model, seen = trainable(tmp_path, endpoint), []

    def calculator(prompt: int | None, sampled: int | None, context: str) -> dict[str, float]:
        seen.append((prompt, sampled, context))
        return {f"costs/{context}/sample": 0.5, "tokens": 9.0}

    async def ask(**options: Any) -> None:
        question: Any = [{"role": "user", "content": "q"}]
        await model.openai_client().chat.completions.create(model="agent", messages=question, **options)

    model.set_cost_calculator(calculator)
    assert model.cost_calculator is calculator
    await ask()
    with model.metrics_builder("eval").activate_context():
        await ask()
        await ask(n=3)
        model.set_cost_calculator(None)
        await ask()
    assert seen == [(10, 4, "eval"), (30, 4, "eval")], "outside of a builder nothing is charged"
    await model.log(metrics={"reward": 1.0}, split="val", step=0)
    (line,) = lines(tmp_path)
    assert (line["costs/eval/sample"], "tokens" in line) == (1.0, False)


async def test_observers_get_what_was_written_and_what_was_said_of_the_run(tmp_path: Path) -> None:
    model, told = trainable(tmp_path), list[LogRecord]()
    model._tell = told.append
    model.update_wandb_config({"lr": 1e-5, "data": {"seed": 1}})
    model.update_wandb_config({"data": {"size": 9, "seed": 1}})
    with pytest.raises(ConfigError, match=r"immutable once set\. Conflicting value for 'data\.seed'"):
        model.update_wandb_config({"data": {"seed": 2}})
    with pytest.raises(ConfigError, match="config is a list"):
        model.update_wandb_config([])  # type: ignore[arg-type]
    await model.log([group(1.0)], "val", step=3)
    (record,) = told
    path = tmp_path / "p/models/agent"
    assert (record.run_path, record.split, record.step) == (path, "val", 3)
    assert record.trajectories == path / "trajectories/val/0003.parquet"
    assert record.metrics["val/reward"] == 1.0
    assert record.config == {"lr": 1e-5, "data": {"seed": 1, "size": 9}}
