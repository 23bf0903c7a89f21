"""A run that goes on with torchtune where torch has left it, and whose trainer is killed in the middle of a step."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest
from art_torch.options import TorchTrainerOptions
from art_torchtune.options import TorchtuneTrainerOptions

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER, verify
from tests.flow.agent import gather
from tests.plugins.art_torchtune.kill import killed
from tests.plugins.life import asked_for_a_step, suspend_trainer

pytestmark = pytest.mark.heavy


async def test_a_run_goes_on_with_torchtune_and_survives_a_kill_mid_step(
    tmp_path: Path, tiny_model: Path, torchtune_options: TorchtuneTrainerOptions
) -> None:
    rewards = count()
    for trainer in (TorchTrainerOptions(device="cpu", cpu_threads=1), torchtune_options):
        model = art.TrainableModel(name="m", project="p", base_model=str(tiny_model))
        async with LocalBackend(path=tmp_path, engine="torch", trainer=trainer) as backend:
            await model.register(backend)
            groups = await gather(model, lambda _: float(next(rewards)), runs=3)
            result = await backend.train(model, groups, learning_rate=1e-3)
            assert result.metrics["publish/proved"] == 1.0
            if trainer is torchtune_options:
                assert result.step == 2
                process_id = suspend_trainer(backend, model)
                step = asyncio.create_task(backend.train(model, groups, learning_rate=1e-3))
                await asked_for_a_step(backend, model)
                await killed(process_id, step)
                assert model.get_inference_name() == "m@2"
                assert (await backend.train(model, groups, learning_rate=1e-3)).step == 3
    checkpoints = tmp_path / "p" / "models" / "m" / "checkpoints"
    manifests = [verify(checkpoints / f"{step:04}") for step in range(4)]
    assert len({manifest.files[ADAPTER].sha256 for manifest in manifests}) == 4
