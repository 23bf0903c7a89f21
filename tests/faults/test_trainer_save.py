"""A trainer's process killed while it writes a checkpoint: nothing of that is ever listed, and the next step works."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.checkpoint import verify
from art_core.errors import TrainerUnavailableError
from art_core.testing.condition import TOLD_S, until, within
from tests.flow.agent import by_length, gather


@pytest.mark.heavy
async def test_killed_mid_save_the_last_step_stands_and_the_next_train_works(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    stop = tmp_path / "stop"
    options = {"cpu_threads": 1, "stop": str(stop)}
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_model), _internal_config={"trainer_args": options}
    )
    trainer = "tests.faults.stopped_trainer:StoppedTrainer"
    async with LocalBackend(path=tmp_path, engine="torch", trainer=trainer) as backend:
        await model.register(backend)
        groups = await gather(model, by_length)
        assert (await backend.train(model, groups, learning_rate=1e-3)).step == 1
        stop.touch()
        step = asyncio.create_task(backend.train(model, groups, learning_rate=1e-3))
        await until(lambda: stop.read_text().endswith("\n"), "the save has begun")
        written = stop.read_text()
        stop.unlink()
        os.kill(int(written), signal.SIGKILL)
        with within(TOLD_S, "a kill is told"), pytest.raises(TrainerUnavailableError, match="was killed by SIGKILL"):
            await step
        assert model.get_inference_name() == "m@1"
        checkpoints = tmp_path / "p" / "models" / "m" / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir() if path.name.isdigit()) == ["0000", "0001"]
        result = await backend.train(model, groups, learning_rate=1e-3)
        assert (result.step, result.metrics["publish/proved"]) == (2, 1.0)
        assert [verify(checkpoints / f"{number:04}").step for number in range(3)] == [0, 1, 2]
