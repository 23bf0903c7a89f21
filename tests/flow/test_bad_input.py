"""What a user gets wrong: a typed error that names value seen, values allowed and the next step; nothing lost."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.errors import (
    ConfigError,
    DataError,
    PluginNotFoundError,
    StoreError,
    TokenizationError,
    TrajectoryError,
)
from tests.conftest import Real
from tests.flow.agent import by_length, gather


async def _register(tmp_path: Path, base_model: str, **options: object) -> None:
    config = options.pop("config", None)
    model = art.TrainableModel(name="m", project="p", base_model=base_model, _internal_config=config)
    async with LocalBackend(path=tmp_path, **options) as backend:
        await model.register(backend)


@pytest.mark.parametrize(
    ("kind", "seen", "meant"),
    [
        ("engine", "torhc", "torch"),
        ("trainer", "torhc", "torch"),
        ("store", "fiel", "file"),
        ("publisher", "relaod", "reload"),
    ],
)
async def test_unknown_plugin(tmp_path: Path, tiny_model: Path, kind: str, seen: str, meant: str) -> None:
    with pytest.raises(PluginNotFoundError, match=f"{kind} '{seen}' is not installed; did you mean '{meant}'"):
        await _register(tmp_path, str(tiny_model), **{kind: seen})
    assert list(tmp_path.iterdir()) == []  # refused before anything was made


async def test_unknown_backend_option(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="'engin'; did you mean 'engine'"):
        await _register(tmp_path, str(tiny_model), engin="torch")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"engine_args": {"max_lora": 2}}, "did you mean 'max_loras'"),
        ({"engine_args": {"max_loras": 0}}, "max_loras"),
        ({"trainer_args": {"weight_deca": 0.0}}, "'weight_deca'; did you mean 'weight_decay'"),
        ({"trainer_args": {"weight_decay": -1.0}}, "weight_decay is -1"),
        ({"trainer_gpu_id": [0]}, "did you mean 'trainer_gpu_ids'"),
    ],
)
async def test_unknown_or_bad_option(tmp_path: Path, tiny_model: Path, config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await _register(tmp_path, str(tiny_model), config=config, engine="torch", trainer="torch")


async def test_missing_base_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        await _register(tmp_path, str(tmp_path / "no-such-model"), engine="torch", trainer="torch")


async def test_read_only_path(tiny_model: Path) -> None:
    with pytest.raises((StoreError, ConfigError), match="/proc"):
        await _register(Path("/proc/art"), str(tiny_model), engine="torch", trainer="torch")


async def test_a_base_model_that_is_another_one_now(tmp_path: Path, tiny_model: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "config.json").chmod(0o644)
    await _register(tmp_path / "runs", str(base), engine="torch", trainer="torch")
    (base / "generation_config.json").unlink(missing_ok=True)  # says nothing about what is computed
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    with pytest.raises(ConfigError, match=r"step 0 was trained on another base model: .*choose another run name"):
        await _register(tmp_path / "runs", str(base), engine="torch", trainer="torch")


@pytest.mark.real
class TestTrain:
    """Bad groups handed to `train`: refused before anything happens; the step stays."""

    async def _refused(self, real: Real, groups: list[art.TrajectoryGroup], error: type[DataError], match: str) -> None:
        step, name = await real.model.get_step(), real.model.get_inference_name()
        with pytest.raises(error, match=match):
            await real.backend.train(real.model, groups)
        assert (await real.model.get_step(), real.model.get_inference_name()) == (step, name)

    async def test_no_groups(self, real: Real) -> None:
        await self._refused(real, [], TrajectoryError, "group")
        await self._refused(real, [art.TrajectoryGroup([])], TrajectoryError, "trajector")

    async def test_one_trajectory_teaches_nothing_but_is_no_error(self, real: Real) -> None:
        groups = await gather(real.model, by_length, runs=1)
        result = await real.backend.train(real.model, groups)
        assert result.metrics["data/step_num_groups_trainable"] == 0

    @pytest.mark.parametrize("reward", [math.nan, math.inf])
    async def test_reward_that_is_no_number(self, real: Real, reward: float) -> None:
        groups = await gather(real.model, by_length, runs=2)
        groups[1].trajectories[0].reward = reward
        await self._refused(real, groups, TrajectoryError, r"group 1, trajectory 0.*(nan|inf)")

    @pytest.mark.parametrize("what", ["token_ids", "prompt_token_ids"])
    async def test_missing_token_ids(self, real: Real, what: str) -> None:
        groups = copy.deepcopy(await gather(real.model, by_length, runs=2))
        choice = groups[0].trajectories[1].messages_and_choices[-1]
        del choice.model_extra[what]
        choice.logprobs.content[0].token = "Oslo"  # else the ids are read as the logprobs spell them
        await self._refused(real, groups, TokenizationError, rf"group 0, trajectory 1, choice 0.*{what}")

    async def test_missing_logprobs(self, real: Real) -> None:
        groups = copy.deepcopy(await gather(real.model, by_length, runs=2))
        groups[0].trajectories[1].messages_and_choices[-1].logprobs = None
        await self._refused(real, groups, TokenizationError, "group 0, trajectory 1, choice 0.*logprobs")

    async def test_step_of_the_future(self, real: Real) -> None:
        groups = copy.deepcopy(await gather(real.model, by_length, runs=2))
        groups[0].trajectories[0].messages_and_choices[-1].model_extra["policy_step"] = 999
        await self._refused(real, groups, TrajectoryError, "group 0, trajectory 0.*999")

    async def test_unknown_train_option(self, real: Real) -> None:
        with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
            await real.backend.train(real.model, [], learnin_rate=1e-5)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match="only supports loss_fn='cispo' or 'ppo'"):
            await real.backend.train(real.model, [], loss_fn="dpo")  # type: ignore[arg-type]
