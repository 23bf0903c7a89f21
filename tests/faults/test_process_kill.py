"""kill -9 and Ctrl-C of client, engine and trainer while steps are made: nothing lost, no process left behind."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from art_core.checkpoint import verify

SEED = 20261122


@asynccontextmanager
async def victim(root: Path, base_model: Path, steps: int) -> AsyncIterator[Process]:
    """A running client; killed at the end where it still lives."""
    command = (sys.executable, "-m", "tests.faults.victim", str(root), str(base_model), str(steps))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(process: Process, *words: str) -> list[str]:
    """Read lines until one that starts with one of the words, and return its words."""
    assert process.stdout is not None and process.stderr is not None
    while line := (await process.stdout.readline()).decode().split():
        if line[0] in words:
            return line
    raise AssertionError(f"the client ended before it said {words}: {(await process.stderr.read()).decode()[-2000:]}")


def parts_of(process: Process) -> dict[str, psutil.Process]:
    """The engine's and the trainer's process."""
    found = {}
    for child in psutil.Process(process.pid).children():
        found["trainer" if any("worker" in word for word in child.cmdline()) else "engine"] = child
    return found


async def gone(processes: list[psutil.Process], timeout_s: float = 5.0) -> list[psutil.Process]:
    """Those that still live after the time-out."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout_s)
    return alive


def stored_steps(root: Path) -> list[int]:
    """The run's committed steps, every byte of each verified."""
    directory = root / "faults" / "models" / "victim" / "checkpoints"
    return sorted(verify(path).step for path in directory.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("attempt", range(2))
async def test_client_killed_mid_step(tmp_path: Path, tiny_model: Path, attempt: int) -> None:
    delay_s = random.Random(SEED + attempt).uniform(0, 0.3)
    async with victim(tmp_path, tiny_model, 1000) as process:
        await until(process, "ready")
        family = psutil.Process(process.pid).children(recursive=True)
        served = int((await until(process, "served"))[1])
        await until(process, "training")
        await asyncio.sleep(delay_s)
        process.kill()
        assert await gone(family) == []
    steps = stored_steps(tmp_path)
    assert steps == list(range(len(steps))) and steps[-1] >= served
    async with victim(tmp_path, tiny_model, 1) as process:
        assert int((await until(process, "ready"))[1]) == steps[-1]
        assert int((await until(process, "served"))[1]) == steps[-1] + 1
        assert await process.wait() == 0


async def test_trainer_killed_mid_step_is_started_again(tmp_path: Path, tiny_model: Path) -> None:
    async with victim(tmp_path, tiny_model, 3) as process:
        await until(process, "training")
        parts_of(process)["trainer"].kill()
        assert await until(process, "error") == ["error", "TrainerUnavailableError", "True"]
        assert await until(process, "served") == ["served", "1"]
        await until(process, "served")
        family = psutil.Process(process.pid).children(recursive=True)
        await until(process, "served")
        assert await process.wait() == 0
        assert await gone(family) == []
    assert stored_steps(tmp_path) == [0, 1, 2, 3]


async def test_engine_killed_mid_step_the_step_is_published_once_it_is_back(tmp_path: Path, tiny_model: Path) -> None:
    async with victim(tmp_path, tiny_model, 2) as process:
        await until(process, "training")
        family = psutil.Process(process.pid).children(recursive=True)
        parts_of(process)["engine"].kill()
        assert await until(process, "served", "error") == ["served", "1"]
        family += psutil.Process(process.pid).children(recursive=True)
        assert await until(process, "served", "error") == ["served", "2"]
        assert await process.wait() == 0
        assert await gone(family) == []
    assert stored_steps(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("engine", ["alive", pytest.param("being started again", marks=pytest.mark.heavy)])
async def test_ctrl_c_mid_step(tmp_path: Path, tiny_model: Path, engine: str) -> None:
    async with victim(tmp_path, tiny_model, 1000) as process:
        await until(process, "served")
        family = psutil.Process(process.pid).children(recursive=True)
        if engine != "alive":
            parts_of(process)["engine"].kill()
            while not (born := set(psutil.Process(process.pid).children(recursive=True)) - set(family)):
                await asyncio.sleep(0)
            family += born
        else:
            await until(process, "training")
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode in (-signal.SIGINT, 130)
        assert await gone(family) == []
    steps = stored_steps(tmp_path)
    assert steps == list(range(len(steps))) and len(steps) >= 2
