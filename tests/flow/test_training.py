"""Options and data of `backend.train` through the real line: engine and trainer in their processes, the tiny model."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.chat_completion import Choice
from safetensors.numpy import load_file, save_file

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER
from art_core.errors import (
    ArtError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    ConfigError,
    StaleWeightsError,
    TokenizationError,
    TrajectoryError,
)
from tests.conftest import Real
from tests.flow.agent import gather


@pytest.fixture(scope="module")
async def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    """A backend of this file's own, one trained step away from the base model."""
    root = tmp_path_factory.mktemp("options")
    async with LocalBackend(path=root, engine="torch", trainer="torch") as backend:
        model = art.TrainableModel(
            name="options",
            project="tests",
            base_model=str(tiny_model),
            _internal_config={"trainer_args": {"learning_rate": 1e-2, "max_grad_norm": 1.0}},
        )
        await model.register(backend)
        made = Real(backend, model, root)
        await backend.train(model, await groups(made))
        yield made


async def groups(real: Real) -> list[art.TrajectoryGroup]:
    """Two groups of three rollouts with rewards that differ, whatever was said."""
    made = await gather(real.model, lambda text: 0.0, runs=3)
    for group in made:
        for reward, trajectory in enumerate(group):
            trajectory.reward = float(reward)
    return made


def adapter(path: str | None) -> dict[str, Any]:
    assert path is not None
    return {name: array.tolist() for name, array in load_file(Path(path) / ADAPTER).items()}


OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"loss_fn": "ppo", "epsilon": 0.2, "epsilon_high": 0.28},
    "sequence": {"importance_sampling_level": "sequence"},
    "average": {"importance_sampling_level": "average"},
    "geometric_average": {"importance_sampling_level": "geometric_average"},
    "bounds": {
        "max_negative_advantage_importance_sampling_weight": 1.0,
        "mask_prob_ratio": True,
        "kimi_k2_tau": 0.1,
        "advantage_balance": 0.3,
        "normalize_advantages": False,
    },
    "own logprobs": {"precalculate_logprobs": True, "truncated_importance_sampling": 2.0},
    "kl to the base": {"kl_penalty_coef": 0.1},
    "kl of samples to a step": {
        "kl_penalty_coef": 0.1,
        "kl_penalty_reference_step": 1,
        "kl_penalty_source": "sample",
    },
    "updates": {"grad_accumulation_sequences": 2, "num_trajectories_learning_rate_multiplier_power": 0.5},
    "sizes": {"packed_sequence_length": 64, "logprob_calculation_chunk_size": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_reaches_the_trainer_and_the_step_is_served(tiny: Real, name: str) -> None:
    result = await tiny.backend.train(tiny.model, await groups(tiny), **OPTIONS[name])
    assert result.metrics["publish/proved"] == 1.0
    assert result.metrics["loss/grad_norm"] > 0
    assert result.step == await tiny.model.get_step()
    assert ("loss/kl_policy_ref" in result.metrics) == name.startswith("kl")
    assert result.metrics["data/step_num_gradient_steps"] == (3 if name == "updates" else 1)


async def test_the_reference_is_the_step_or_the_adapter_that_is_named(tiny: Real) -> None:
    """The policy's own step as reference: no distance at all. Its directory, given as a path, is the same adapter."""
    own = await tiny.backend.train(tiny.model, await groups(tiny))
    step = await tiny.backend.train(
        tiny.model, await groups(tiny), kl_penalty_coef=0.1, kl_penalty_reference_step=own.step
    )
    assert step.metrics["loss/kl_policy_ref"] == 0.0
    path = await tiny.backend.train(
        tiny.model, await groups(tiny), kl_penalty_coef=0.1, kl_ref_adapter_path=step.checkpoint_path
    )
    assert path.metrics["loss/kl_policy_ref"] == 0.0
    base = await tiny.backend.train(tiny.model, await groups(tiny), kl_penalty_coef=0.1)
    assert base.metrics["loss/kl_policy_ref"] > 0.0


@pytest.mark.heavy
async def test_the_same_groups_and_seed_give_the_same_adapter_through_the_whole_line(
    tiny_model: Path, tmp_path: Path
) -> None:
    adapters, kept = [], None
    for run in ("one", "two"):
        async with LocalBackend(path=tmp_path / run, engine="torch", trainer="torch") as backend:
            model = art.TrainableModel(name="same", project="tests", base_model=str(tiny_model))
            await model.register(backend)
            kept = kept or await groups(Real(backend, model, tmp_path))
            options: dict[str, Any] = OPTIONS["own logprobs"] | {"kl_penalty_coef": 0.1, "learning_rate": 1e-3}
            adapters.append(adapter((await backend.train(model, kept, **options)).checkpoint_path))
    assert adapters[0] == adapters[1]


async def test_choices_without_logprobs_are_trained_on_where_that_is_allowed(tiny: Real) -> None:
    silent = copy.deepcopy(await groups(tiny))
    for group in silent:
        for trajectory in group:
            trajectory.messages_and_choices[-1].logprobs = None
    with pytest.raises(TokenizationError, match=r"no logprobs.*allow_training_without_logprobs=True"):
        await tiny.backend.train(tiny.model, silent)
    result = await tiny.backend.train(tiny.model, silent, allow_training_without_logprobs=True)
    assert result.metrics["data/step_tokens_without_logprob"] == result.metrics["data/step_trainable_tokens"] > 0
    assert result.metrics["loss/ratio_max"] == 1.0


async def test_the_learning_rate_follows_the_logged_deviation_of_rewards(tiny: Real) -> None:
    scaled: dict[str, Any] = {"scale_learning_rate_by_reward_std_dev": True, "learning_rate": 1e-3}
    made = await groups(tiny)
    first = await tiny.backend.train(tiny.model, made, **scaled)
    assert first.metrics["loss/learning_rate"] == 1e-3  # nothing is logged yet
    deviation, step = first.metrics["train/reward_std_dev"], first.step
    await tiny.model.log(metrics={"train/reward_std_dev": 2 * deviation}, split="train", step=0)
    second = await tiny.backend.train(tiny.model, await groups(tiny), **scaled)
    assert second.metrics["loss/learning_rate"] == pytest.approx(0.5e-3)  # half of what it was at step 0
    assert second.step == step + 1


def _damaged(tiny: Real, tmp_path: Path, change: str) -> Path:
    source = tiny.root / "tests" / "models" / "options" / "checkpoints" / "0001"
    directory = tmp_path / "reference"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = load_file(directory / ADAPTER)
    first = min(tensors)
    if change == "pickle":
        (directory / "adapter_model.bin").write_bytes(b"\x80\x04.")
    elif change == "shape":
        save_file(tensors | {first: tensors[first][:, :-1].copy()}, directory / ADAPTER)
    else:
        tensors[first][0, 0] = float("nan")
        save_file(tensors, directory / ADAPTER)
    return directory


@pytest.mark.parametrize(("change", "message"), [("pickle", "a pickle"), ("shape", "has shape"), ("NaN", "not finite")])
async def test_a_hostile_reference_adapter_is_refused_and_nothing_is_lost(
    tiny: Real, tmp_path: Path, change: str, message: str
) -> None:
    directory, made = _damaged(tiny, tmp_path, change), await groups(tiny)
    await _refused(tiny, made, CheckpointCorruptError, message, kl_ref_adapter_path=str(directory))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kl_ref_adapter_path": "no/such/place"}, ConfigError, "'no/such/place', which is no directory"),
        ({"kl_penalty_reference_step": 999}, CheckpointNotFoundError, "is 999, which is not stored here; stored: 0, 1"),
        ({"kl_penalty_reference_step": -1}, ConfigError, "kl_penalty_reference_step is -1"),
        ({"truncated_importance_sampling": 2.0}, ConfigError, "needs precalculate_logprobs=True"),
        ({"plot_tensors": True}, ConfigError, "plot_tensors is True; allowed: False"),
        ({"importance_sampling_level": "word"}, ConfigError, "'token', 'sequence', 'average', 'geometric_average'"),
    ],
)
async def test_what_can_t_be_done_is_refused_before_work(
    tiny: Real, options: dict[str, Any], error: type[ArtError], message: str
) -> None:
    await _refused(tiny, await groups(tiny), error, message, **options)


async def _refused(
    tiny: Real, made: list[art.TrajectoryGroup], error: type[ArtError], message: str, **options: Any
) -> None:
    step = await tiny.model.get_step()
    with pytest.raises(error, match=message):
        await tiny.backend.train(tiny.model, made, kl_penalty_coef=0.1, **options)
    assert await tiny.model.get_step() == step
    assert (await tiny.backend.train(tiny.model, await groups(tiny))).step == step + 1


def _token_outside(choice: Choice) -> None:
    choice.model_extra["token_ids"][0] = 258


def _too_long(choice: Choice) -> None:
    choice.model_extra["prompt_token_ids"] = [1] * 512


def _logprob(value: float) -> Callable[[Choice], None]:
    def change(choice: Choice) -> None:
        choice.logprobs.content[0].logprob = value

    return change


def _step_unknown(choice: Choice) -> None:
    choice.model_extra["policy_step"] = 999


BAD: dict[str, tuple[Callable[[Choice], None], str]] = {
    "a token outside the vocabulary": (_token_outside, "token_ids holds 258; allowed: 0 to 257"),
    "a sequence beyond the context": (_too_long, r"a sequence of 51[3-8] tokens; the context holds 512"),
    "a logprob that is NaN": (_logprob(math.nan), "has logprob nan at token 0; allowed: finite"),
    "an infinite logprob": (_logprob(-math.inf), "has logprob -inf at token 0; allowed: finite"),
    "a positive logprob": (_logprob(0.5), "has logprob 0.5 at token 0; allowed: finite, at most 0"),
    "a step that was never published": (_step_unknown, "sampled by policy step 999, which this run has not published"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_data_is_refused_before_work_wherever_it_stands(tiny: Real, name: str) -> None:
    change, message = BAD[name]
    made = copy.deepcopy(await groups(tiny))
    change(made[1].trajectories[2].messages_and_choices[-1])
    await _refused(tiny, made, TrajectoryError, rf"^group 1, trajectory 2.*{message}")


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
async def test_a_reward_that_is_no_number_is_refused_before_work(tiny: Real, reward: float) -> None:
    made = await groups(tiny)
    made[1].trajectories[2].reward = reward
    await _refused(tiny, made, TrajectoryError, rf"^group 1, trajectory 2 has reward {reward!r}; allowed: a finite")


@pytest.mark.parametrize(
    ("change", "lora", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, None, "not a causal LM"),
        ({}, {"target_modules": ["q_porj"]}, "LoRA target 'q_porj' matches no .*did you mean 'q_proj'"),
    ],
)
async def test_a_base_or_target_that_can_t_be_trained_is_refused_at_registration(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], lora: Any, message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    model = art.TrainableModel(name="bad", project="tests", base_model=str(base), lora_config=lora)
    async with LocalBackend(path=tmp_path / "runs", engine="torch", trainer="torch") as backend:
        with pytest.raises(ConfigError, match=message):
            await model.register(backend)


async def test_an_engine_that_computes_another_function_is_told_of_once(
    tiny: Real, caplog: pytest.LogCaptureFixture
) -> None:
    """Choices that claim another temperature than they were sampled at stand for such an engine."""
    made = await groups(tiny)
    for group in made:
        for trajectory in group:
            trajectory.messages_and_choices[-1].model_extra["temperature"] = 0.2
    with caplog.at_level(logging.WARNING, logger="art.loop"):
        result = await tiny.backend.train(tiny.model, made)
        assert result.metrics["offpolicy/engine_logprob_gap"] > 0.1
        assert result.metrics["offpolicy/engine_ratio_max"] > 1.1
        await tiny.backend.train(tiny.model, made)
    told = [record.getMessage() for record in caplog.records if "different functions" in record.getMessage()]
    assert len(told) == 1
    assert "engine (float32) and trainer (float32) compute different functions" in told[0]


async def test_it_is_refused_where_nobody_saw_the_engine_s_base_model(
    tiny: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server that somebody else runs; the heavy tests of vLLM have one with other weights."""
    made, held = await groups(tiny), await tiny.model.get_step()
    for group in made:
        for trajectory in group:
            trajectory.messages_and_choices[-1].model_extra["temperature"] = 0.2
    session = tiny.backend._sessions[tiny.model.project, tiny.model.name]
    unseen = replace(session.backend, model=replace(session.backend.model, files_seen=False))
    with monkeypatch.context() as patch:
        patch.setattr(session, "backend", unseen)
        with pytest.raises(StaleWeightsError, match=r"serves another base model .*The step was not stored"):
            await tiny.backend.train(tiny.model, made)
    assert await tiny.model.get_step() == held
    assert (await tiny.backend.train(tiny.model, await groups(tiny))).step == held + 1
