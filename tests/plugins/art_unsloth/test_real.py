"""The real library in its own interpreter: what it refuses at the start, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from art_unsloth.options import UnslothTrainerOptions
from safetensors.numpy import load_file

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, verify
from art_core.compose import interpreter_of
from art_core.config import Environment, Timeouts
from art_core.errors import TrainerStartError, TrainerUnavailableError
from art_core.plugins import load_part
from art_core.step import StepConfig
from art_core.testing.condition import TOLD_S, until, within
from art_core.worker import TrainerWorker
from tests.flow.agent import by_length, gather
from tests.plugins.art_torch.trainer_case import digests, make_batch, spec, started
from tests.plugins.life import asked_for_a_step, suspend_trainer

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

CONFIG = StepConfig(learning_rate=1e-2, max_grad_norm=1.0)


@asynccontextmanager
async def hosted(options: UnslothTrainerOptions, log_path: Path) -> AsyncIterator[TrainerWorker]:
    """The trainer as core hosts it."""
    part = load_part("trainer", "unsloth")
    python = interpreter_of(part, options, Environment.read().cache)
    values = options.model_dump(exclude={"python"})
    worker = TrainerWorker("unsloth", values, log_path, Timeouts(), part.variables, python)
    try:
        yield worker
    finally:
        await worker.stop()


async def test_without_a_gpu_it_says_so_at_the_start(tmp_path: Path, tiny_model: Path) -> None:
    async with hosted(UnslothTrainerOptions(device="cuda"), tmp_path / "trainer.log") as worker:
        with pytest.raises(TrainerStartError, match=r"(?s)can't run here with device='cuda': .*device='cpu'"):
            await worker.start(spec(tiny_model), None)


async def test_four_bits_are_four_bits_or_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can't quantise, Unsloth goes on in 16 bits and prints a line that nobody reads."""
    options = UnslothTrainerOptions(device="cpu", load_in_4bit=True, cpu_threads=1)
    async with hosted(options, tmp_path / "trainer.log") as worker:
        monkeypatch.setenv("UNSLOTH_CPU_LOAD_IN_4BIT", "0")
        with pytest.raises(TrainerStartError, match=r"load_in_4bit is True and Unsloth loaded 0 of 14 .* in 4 bits"):
            await worker.start(spec(tiny_model), None)
        monkeypatch.delenv("UNSLOTH_CPU_LOAD_IN_4BIT")
        await worker.stop()
        await worker.start(spec(tiny_model), None)
        result = await worker.step(make_batch(), CONFIG)
        torch_trainer = await started(tiny_model)
        exact = await torch_trainer.step(make_batch(), CONFIG)
        gap = abs(result.metrics["loss/train"] - exact.metrics["loss/train"])
        assert result.updated and 1e-6 < gap < 0.1
        before = digests(await _saved(worker, tmp_path / "before"))
        await worker.offload()
        await worker.onload()
        assert digests(await _saved(worker, tmp_path / "after")) == before


async def test_plain_rows_learn_what_packed_passes_of_the_torch_trainer_learn(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: killed in a save and in a hand-over, what was saved before stands, and it starts from there."""
    monkeypatch.setenv("UNSLOTH_ALLOW_CPU", "1")  # somebody's spoof, which must not reach the trainer
    options = UnslothTrainerOptions(device="cpu", packing=False, cpu_threads=1)
    async with hosted(options, tmp_path / "trainer.log") as worker:
        await worker.start(spec(tiny_model), None)
        await worker.step(make_batch(), CONFIG)
        saved = await _saved(worker, tmp_path / "saved")
        torch_trainer = await started(tiny_model)
        await torch_trainer.step(make_batch(), CONFIG)
        mine, theirs = load_file(saved / ADAPTER), load_file(await _saved(torch_trainer, tmp_path / "torch") / ADAPTER)
        for name, tensor in mine.items():
            np.testing.assert_allclose(tensor, theirs[name], atol=2e-4)
        before = digests(saved)
        await _killed_in_save(worker, tmp_path / "half")
        await worker.start(spec(tiny_model), saved)
        assert digests(await _saved(worker, tmp_path / "again")) == before
        assert (await worker.step(make_batch(1), CONFIG)).updated
        await _killed_while_stopped(worker, worker.offload())  # on a CPU it takes no time
        assert digests(saved) == before


async def test_killed_mid_step_the_last_step_is_served_and_the_next_train_works(
    tmp_path: Path, tiny_model: Path
) -> None:
    model = art.TrainableModel(name="m", project="p", base_model=str(tiny_model))
    async with LocalBackend(path=tmp_path, engine="torch", trainer=UnslothTrainerOptions(device="cpu")) as backend:
        await model.register(backend)
        groups = await gather(model, by_length)
        assert (await backend.train(model, groups, learning_rate=1e-3)).metrics["publish/proved"] == 1.0
        process_id = suspend_trainer(backend, model)
        step = asyncio.ensure_future(backend.train(model, groups, learning_rate=1e-3))
        await asked_for_a_step(backend, model)
        await _ends_with_an_error(process_id, step)
        assert model.get_inference_name() == "m@1"
        result = await backend.train(model, groups, learning_rate=1e-3)
        assert (result.step, result.metrics["publish/proved"]) == (2, 1.0)
        checkpoints = tmp_path / "p" / "models" / "m" / "checkpoints"
        assert [verify(checkpoints / f"{number:04}").step for number in range(3)] == [0, 1, 2]


async def _saved(trainer: object, directory: Path) -> Path:
    directory.mkdir()
    await trainer.save(directory)  # type: ignore[attr-defined]
    return directory


async def _killed_in_save(worker: TrainerWorker, directory: Path) -> None:
    """The adapter's file is a pipe that nobody reads, so the process is in the middle of its save."""
    directory.mkdir()
    os.mkfifo(directory / ADAPTER)
    save = asyncio.ensure_future(worker.save(directory))
    await until((directory / ADAPTER_CONFIG).exists, "the save has begun")
    await _ends_with_an_error(worker.process_id, save)


async def _killed_while_stopped(worker: TrainerWorker, call: Coroutine[Any, Any, object]) -> None:
    """The process is stopped first, so the call is under way when it is killed."""
    process = psutil.Process(worker.process_id)
    process.suspend()
    running = asyncio.ensure_future(call)
    done, _ = await asyncio.wait({running}, timeout=0.5)
    assert not done
    await _ends_with_an_error(process.pid, running)


async def _ends_with_an_error(pid: int, call: asyncio.Future[object]) -> None:
    os.kill(pid, signal.SIGKILL)
    with within(TOLD_S, "a kill is told"), pytest.raises(TrainerUnavailableError, match="was killed by SIGKILL"):
        await call
