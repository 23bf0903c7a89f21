"""A run that goes from trainer to trainer: each takes over what another saved, and goes on as that one would have."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from art_torch.options import TorchTrainerOptions
from art_torchtune.options import TorchtuneTrainerOptions
from art_unsloth.options import UnslothTrainerOptions
from safetensors.numpy import load_file

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER
from art_core.compose import interpreter_of
from art_core.config import Environment, HostedOptions, LoRAConfig, Timeouts
from art_core.part import TrainerPart
from art_core.plugins import load_part
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig
from art_core.testing.batch import BatchShape, make_batch
from art_core.worker import TrainerWorker

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

OPTIONS: list[HostedOptions] = [
    TorchTrainerOptions(device="cpu", cpu_threads=1),
    TorchtuneTrainerOptions(device="cpu", cpu_threads=1),
    UnslothTrainerOptions(device="cpu", cpu_threads=1),
]
EXACT = (ADAPTER, OPTIMIZER)


def hosted(options: HostedOptions, log_path: Path) -> TrainerWorker:
    """A trainer as core hosts it."""
    part = cast(TrainerPart, load_part("trainer", options.part))
    python = interpreter_of(part, options, Environment.read().cache)
    values = options.model_dump(exclude={"python"})
    return TrainerWorker(part.name, values, log_path, Timeouts(), part.variables, python)


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
    ways = [np.concatenate([(each[n] - origin[n]).ravel() for n in sorted(origin)]) for each in (first, second)]
    return float(ways[0] @ ways[1] / (np.linalg.norm(ways[0]) * np.linalg.norm(ways[1])))


async def test_a_run_moves_through_all_trainers_and_back(tiny_model: Path, tmp_path: Path) -> None:
    spec, start = TrainerSpec(str(tiny_model), LoRAConfig(rank=4)), None
    async with AsyncExitStack() as stack:
        trainers = []
        for options in OPTIONS:
            trainers.append(hosted(options, tmp_path / f"{options.part}.log"))
            stack.push_async_callback(trainers[-1].stop)
        for leg, stayer in enumerate(trainers):
            mover, place = trainers[(leg + 1) % len(trainers)], tmp_path / str(leg)
            place.mkdir()
            saved = await steps(stayer, spec, start, range(2), place / "saved")
            taken = await steps(mover, spec, saved, range(0), place / "taken")
            for name in EXACT:
                assert (taken / name).read_bytes() == (saved / name).read_bytes()
            assert (taken / ADAPTER_CONFIG).exists()
            moved = await steps(mover, spec, saved, range(2, 4), place / "moved")
            stayed = await steps(stayer, spec, saved, range(2, 4), place / "stayed")
            assert cosine(moved, stayed, saved) > 0.9999, OPTIONS[leg].part
            (saved / OPTIMIZER).unlink()
            afresh = await steps(mover, spec, saved, range(2, 4), place / "afresh")
            assert cosine(afresh, stayed, saved) < 0.99, OPTIONS[leg].part
            start = moved
