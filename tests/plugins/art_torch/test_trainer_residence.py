"""A trainer that gives its GPU away and takes it again. Needs one: a CPU has no memory of its own to give back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from art_torch.options import TorchTrainerOptions
from art_torch.trainer import TorchTrainer

from art_core.step import StepConfig
from tests.plugins.art_torch.trainer_case import digests, make_batch, saved, spec


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
async def test_device_memory_comes_back_and_returns(tiny_model: Path, tmp_path: Path) -> None:
    trainer = TorchTrainer(TorchTrainerOptions(device="cuda", dtype="float32"))
    await trainer.start(spec(tiny_model), None)
    await trainer.step(make_batch(), StepConfig())
    held = torch.cuda.memory_allocated()
    await trainer.offload()
    away = torch.cuda.memory_allocated()
    offloaded = digests(await saved(trainer, tmp_path / "offloaded"))
    await trainer.onload()
    assert away < held / 10 and torch.cuda.memory_allocated() >= held * 0.9
    assert digests(await saved(trainer, tmp_path / "onloaded")) == offloaded
    assert (await trainer.step(make_batch(1), StepConfig())).updated
