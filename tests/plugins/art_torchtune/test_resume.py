"""One run, two trainers: what one saves the other goes on with, adapter and optimizer, and computes the same steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from art_torch.options import TorchTrainerOptions
from art_torchtune.options import TorchtuneTrainerOptions
from safetensors.numpy import load_file

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER
from art_core.config import LoRAConfig
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig
from art_core.testing.batch import BatchShape, make_batch
from art_core.worker import TrainerWorker
from tests.plugins.art_torchtune.hosted import worker

pytestmark = pytest.mark.heavy

FILES = (ADAPTER, ADAPTER_CONFIG, OPTIMIZER)


async def steps(trainer: TrainerWorker, spec: TrainerSpec, start: Path | None, seeds: range, out: Path) -> Path:
    """Make a step for each seed and save."""
    info = await trainer.start(spec, start)
    for seed in seeds:
        await trainer.step(make_batch(info.model, BatchShape(seed)), StepConfig(learning_rate=1e-3))
    out.mkdir()
    await trainer.save(out)
    return out


def cosine(a: Path, b: Path, start: Path) -> float:
    """Between the ways that two trainers went from one checkpoint."""
    first, second, origin = (load_file(directory / ADAPTER) for directory in (a, b, start))
    ways = [
        np.concatenate([(each[name] - origin[name]).ravel() for name in sorted(origin)]) for each in (first, second)
    ]
    return float(ways[0] @ ways[1] / (np.linalg.norm(ways[0]) * np.linalg.norm(ways[1])))


async def test_a_run_moves_to_torchtune_and_back(
    tiny_model: Path, tmp_path: Path, torchtune_options: TorchtuneTrainerOptions
) -> None:
    spec, torch_options = TrainerSpec(str(tiny_model), LoRAConfig(rank=4)), TorchTrainerOptions(device="cpu")
    async with (
        worker(torch_options, tmp_path / "torch.log") as torch_trainer,
        worker(torchtune_options, tmp_path / "torchtune.log") as tune_trainer,
    ):
        trainers, start = [torch_trainer, tune_trainer], None
        for leg, (mover, stayer) in enumerate([trainers, trainers[::-1]]):
            saved = await steps(stayer, spec, start, range(3), tmp_path / f"{leg}-saved")
            taken = await steps(mover, spec, saved, range(0), tmp_path / f"{leg}-taken")
            assert [(taken / name).read_bytes() for name in FILES] == [(saved / name).read_bytes() for name in FILES]
            moved = await steps(mover, spec, saved, range(3, 6), tmp_path / f"{leg}-moved")
            stayed = await steps(stayer, spec, saved, range(3, 6), tmp_path / f"{leg}-stayed")
            assert cosine(moved, stayed, saved) > 0.9999
            (saved / OPTIMIZER).unlink()
            afresh = await steps(mover, spec, saved, range(3, 6), tmp_path / f"{leg}-afresh")
            assert cosine(afresh, stayed, saved) < 0.99
            start = moved
