"""Programs as users of the reference client type them, on a real engine and trainer with a tiny random model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import art
from art.local import LocalBackend
from art.utils import iterate_dataset
from art_core.checkpoint import verify
from art_core.config import LoRAConfig
from art_core.errors import CheckpointNotFoundError, ConfigError
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from tests.staged import stage_step


class Scenario(BaseModel):
    """What the agent is asked."""

    id: str
    prompt: str


class ProjectPolicyConfig(BaseModel):
    """The program's own configuration."""

    max_tokens: int = 4


SCENARIOS = [Scenario(id=str(n), prompt=f"Count to {n}.") for n in range(1, 5)]


@art.retry(exceptions=(OSError,))
async def rollout(
    model: art.TrainableModel[ProjectPolicyConfig], scenario: Scenario, attempt: int = 0
) -> art.Trajectory:
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": scenario.prompt}], metadata={"scenario_id": scenario.id}
    )
    async with trajectory.track_duration("llm_completion"):
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=model.config.max_tokens
        )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = attempt / 10  # what a random model says is worth nothing; the steps must still differ
    trajectory.metrics["correct"] = 1.0
    return trajectory.finish()


async def train(backend: LocalBackend, model: art.TrainableModel[ProjectPolicyConfig], steps: int) -> None:
    """The documented loop."""
    start = await model.get_step()
    for batch in iterate_dataset(SCENARIOS, groups_per_step=2, num_epochs=9, initial_step=start, use_tqdm=False):
        if batch.step == steps:
            break
        groups = await art.gather_trajectory_groups(
            (
                art.trajectory_group(rollout(model, scenario, attempt) for attempt in range(3))
                for scenario in batch.items
            ),
            pbar_desc="gather",
            max_exceptions=1,
        )
        result = await backend.train(model, groups, learning_rate=1e-4)
        await model.log(groups, split="train", metrics=result.metrics, step=result.step)


async def test_a_run_is_trained_forked_and_goes_on_under_another_name(tmp_path: Path, tiny_model: Path) -> None:
    first = art.TrainableModel(
        name="agent-001",
        project="tests",
        base_model=str(tiny_model),
        lora_config={"rank": 4, "alpha": 8},
        config=ProjectPolicyConfig(),
    )
    second = art.TrainableModel(
        name="agent-002",
        project="tests",
        base_model=str(tiny_model),
        lora_config={"rank": 4, "alpha": 8},
        config=ProjectPolicyConfig(max_tokens=5),
    )
    async with LocalBackend(
        in_process=False, path=str(tmp_path), gpu_cost_per_hour_usd=3600.0, engine="torch", trainer="torch"
    ) as backend:
        await first.register(backend, _openai_client_config={"engine_args": {"max_loras": 3}})
        await train(backend, first, steps=2)

        async with backend.exact_adapter_lease(first, 1):
            validation = await art.gather_trajectories(rollout(first, each) for each in SCENARIOS[:2])
        assert [t.messages_and_choices[-1].model_extra["policy_step"] for t in validation] == [1, 1]
        await first.log(validation, split="val", step=1)

        with pytest.warns(DeprecationWarning, match=r"model\.train\(\) is deprecated"):
            await first.train([art.TrajectoryGroup(validation)], config=art.TrainConfig(learning_rate=1e-5))
        assert await first.get_step() == 3

        await backend._experimental_fork_checkpoint(second, from_model="agent-001", not_after_step=2, verbose=True)
        pulled = await backend._experimental_pull_model_checkpoint(second, step=2, local_path=tmp_path / "copy")
        assert verify(Path(pulled)).run == "agent-002"
        await second.register(backend)
        assert await second.get_step() == 2
        with pytest.raises(ConfigError, match="run 'agent-002', whose newest step is 2; allowed once it is registered"):
            await backend._experimental_fork_checkpoint(second, from_model="agent-001")
        await train(backend, second, steps=3)
        await first.delete_checkpoints(best_checkpoint_metric="val/reward")  # the best of val is step 1
        assert second.get_inference_name() == "agent-002@3"
        assert first.get_inference_name() == "agent-001@3"
    check_what_was_written(tmp_path / "tests" / "models")


def check_what_was_written(runs: Path) -> None:
    history = [json.loads(line) for line in (runs / "agent-001/history.jsonl").read_text().splitlines()]
    assert [line["training_step"] for line in history] == [1, 2, 1, 3]
    trained = [history[0], history[1], history[3]]
    assert [line["data/cum/num_trajectories"] for line in trained] == [6, 12, 14]
    for line in trained:
        assert {"train/reward", "train/reward_std_dev", "train/exception_rate", "loss/train"} <= set(line)
        assert line["costs/gpu"] == pytest.approx(line["time/step_wall_s"])
        assert line["costs/all"] == line["costs/gpu"]
    assert trained[2]["costs/cum/gpu"] == pytest.approx(sum(line["costs/gpu"] for line in trained))
    assert history[2]["val/correct"] == 1.0
    assert "time/step_wall_s" not in history[2]

    forked, after = (verify(runs / "agent-002/checkpoints" / step) for step in ("0002", "0003"))
    assert (forked.origin, forked.run, forked.updated) == ("tests/agent-001@2", "agent-002", True)
    assert (after.parent, after.origin) == (2, None)
    assert sorted(path.name for path in (runs / "agent-001/checkpoints").iterdir()) == ["0001", "0003"]


async def test_what_a_fork_is_refused_for_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    model = art.TrainableModel(name="new", project="tests", base_model=str(tiny_model))
    backend = LocalBackend(path=tmp_path)
    with pytest.raises(ConfigError, match=r"'from_modle'|'not_after'; did you mean 'not_after_step'"):
        await backend._experimental_fork_checkpoint(model, "old", not_after=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="not_after_step is -1; allowed: 0 or more"):
        await backend._experimental_fork_checkpoint(model, "old", not_after_step=-1)
    assert list(tmp_path.iterdir()) == []


async def test_a_checkpoint_is_pulled_by_step(tmp_path: Path) -> None:
    model, backend = art.TrainableModel(name="m", project="p", base_model="tiny"), LocalBackend(path=tmp_path)
    run = RunDirectory.create_or_open(tmp_path, "p", "m", "tiny", LoRAConfig())
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint"):
        await backend._experimental_pull_model_checkpoint(model)
    for step in (1, 3):
        await LocalStore().commit(run.path, stage_step(run.path, step))
    for asked, step in ((None, 3), ("latest", 3), (1, 1)):
        found = await backend._experimental_pull_model_checkpoint(model, step=asked)  # type: ignore[typeddict-item]
        assert Path(found) == run.step_directory(step)
    copy = await backend._experimental_pull_model_checkpoint(model, step=1, local_path=str(tmp_path / "copy"))
    assert (Path(copy), verify(Path(copy)).step) == (tmp_path / "copy", 1)
    with pytest.raises(CheckpointNotFoundError, match="step 2 of 'm' is not stored; the newest before is 1"):
        await backend._experimental_pull_model_checkpoint(model, step=2)
    run.close()


async def test_a_checkpoint_that_is_not_here_is_pulled_out_of_the_backends_store(tmp_path: Path) -> None:
    """On another machine nothing but the store has to be named; what is here is not asked of it."""
    model, place = art.TrainableModel(name="m", project="p", base_model="tiny"), (tmp_path / "store").as_uri()
    one, two = (LocalBackend(path=tmp_path / name, store=place) for name in ("one", "two"))
    run = RunDirectory.create_or_open(tmp_path / "one", "p", "m", "tiny", LoRAConfig())
    for step in (1, 3):
        await LocalStore().commit(run.path, stage_step(run.path, step))
    run.close()
    await one._experimental_push_to_s3(model)
    there = tmp_path / "two/p/models/m/checkpoints"
    assert Path(await two._experimental_pull_model_checkpoint(model, local_path=tmp_path / "copy")) == tmp_path / "copy"
    assert verify(tmp_path / "copy").step == 3 and not there.exists()
    assert Path(await two._experimental_pull_model_checkpoint(model)) == there / "0003"
    (tmp_path / "store").rename(tmp_path / "away")
    assert Path(await two._experimental_pull_model_checkpoint(model)) == there / "0003"
    (tmp_path / "away").rename(tmp_path / "store")
    assert Path(await two._experimental_pull_model_checkpoint(model, step=1)) == there / "0001"
    with pytest.raises(CheckpointNotFoundError, match="the store has no step 2 of run p/m; its steps: 1, 3"):
        await two._experimental_pull_model_checkpoint(model, step=2)


@pytest.mark.parametrize("step", ["x", "3", 1.5, True, -1])
async def test_what_is_no_step_is_none(tmp_path: Path, step: Any) -> None:
    """Not the step that it could be made into."""
    model = art.TrainableModel(name="m", project="p", base_model="tiny")
    backend = LocalBackend(path=tmp_path, store=(tmp_path / "store").as_uri())
    said = re.escape(f"is {step!r}; allowed: 0 or more, as a whole number")
    with pytest.raises(ConfigError, match=said):
        await backend._experimental_pull_model_checkpoint(model, step=step)
    with pytest.raises(ConfigError, match=said):
        await backend._experimental_fork_checkpoint(model, "old", not_after_step=step)
    with pytest.raises(ConfigError, match=said), pytest.warns(DeprecationWarning):
        await backend._experimental_pull_from_s3(model, only_step=step)
    assert list(tmp_path.iterdir()) == []


async def test_a_prefix_needs_a_bucket(tmp_path: Path) -> None:
    """Else it would have no effect, and another place be read or written than was meant."""
    model = art.TrainableModel(name="m", project="p", base_model="tiny")
    backend, given = LocalBackend(path=tmp_path, store=(tmp_path / "store").as_uri()), {"prefix": "runs"}
    for call, name in (
        (lambda: backend._experimental_pull_model_checkpoint(model, **given), "s3_bucket"),
        (lambda: backend._experimental_push_to_s3(model, **given), "s3_bucket"),
        (lambda: backend._experimental_fork_checkpoint(model, "old", **given), "from_s3_bucket"),
    ):
        with pytest.raises(ConfigError, match=f"prefix is 'runs', which belongs to a bucket; give {name} as well"):
            await call()
    assert list(tmp_path.iterdir()) == []
