"""`deploy_model`, as programs call it, against our W&B server."""

from __future__ import annotations

from pathlib import Path

import pytest

import art
from art.utils.deployment import WandbDeploymentConfig, deploy_model
from art_core.checkpoint import ADAPTER
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError, PluginNotFoundError
from art_core.local_store import LocalStore
from tests.servers.wandb import WandbServer
from tests.staged import stage_step


async def checkpoint(tmp_path: Path, run: str = "third") -> Path:
    path = tmp_path / "elsewhere" / "models" / run
    return (await LocalStore().commit(path, stage_step(path, 7))).directory


@pytest.fixture
def model(tmp_path: Path) -> art.TrainableModel:
    return art.TrainableModel(name="agent", run_name="third", project="deployed", base_model="tiny")


async def test_a_checkpoint_is_deployed_under_the_model_s_run(
    server: WandbServer, model: art.TrainableModel, tmp_path: Path
) -> None:
    directory = await checkpoint(tmp_path)
    config = WandbDeploymentConfig(base_model="OpenPipe/Qwen3-14B-Instruct")
    result = await deploy_model(model, checkpoint_path=str(directory), step=7, provider="wandb", config=config)
    assert result.inference_model_name == "wandb-artifact:///team/deployed/third:step7"
    assert result.inference_base_url == "https://api.inference.wandb.ai/v1"
    (version,) = server.record.versions("deployed", "third")
    assert version.files[ADAPTER] == (directory / ADAPTER).read_bytes()


async def test_what_can_t_be_deployed_is_refused(
    server: WandbServer, model: art.TrainableModel, tmp_path: Path
) -> None:
    directory = await checkpoint(tmp_path)
    with pytest.raises(PluginNotFoundError, match="'together'"):
        await deploy_model(model, directory, 7, provider="together")
    with pytest.raises(ConfigError, match="'reload' serves on an engine of yours"):
        await deploy_model(model, directory, 7, provider="reload")
    with pytest.raises(ConfigError, match="holds step 7 of run 'third'; step 8 of 'third' was asked for"):
        await deploy_model(model, directory, 8, "wandb")
    with pytest.raises(ConfigError, match="holds step 7 of run 'other'"):
        await deploy_model(model, await checkpoint(tmp_path, "other"), 7, "wandb")
    with pytest.raises(ConfigError, match="base_modell"):
        await deploy_model(model, directory, 7, "wandb", config={"base_modell": "x"})
    with pytest.raises(CheckpointNotFoundError, match="is no checkpoint's directory"):
        await deploy_model(model, tmp_path / "nowhere", 7, "wandb")
    before = len(server.record.versions("deployed", "third"))
    (directory / ADAPTER).write_bytes(b"other")
    with pytest.raises(CheckpointCorruptError):
        await deploy_model(model, directory, 7, "wandb")
    assert len(server.record.versions("deployed", "third")) == before
