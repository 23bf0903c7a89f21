"""kill -9 and Ctrl-C of client, engine and trainer while steps are made: nothing lost, no process left behind."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER, verify
from art_core.config import LoRAConfig
from art_core.errors import RunLockedError
from art_core.run import RunDirectory
from art_core.testing.condition import LONGEST_S, NOTICED_S, within
from art_core.testing.condition import until as waiting
from art_core.testing.family import survivors
from tests.art_core.test_run import HOLD

SEED = 20261122


@asynccontextmanager
async def victim(root: Path, base_model: Path, steps: int, *stopped_at: int) -> AsyncIterator[Process]:
    """A running client, which stops itself at those steps; killed at the end where it still lives."""
    command = (sys.executable, "-m", "tests.faults.victim", str(root), str(base_model), str(steps))
    process = await asyncio.create_subprocess_exec(*command, *map(str, stopped_at), stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(process: Process, *words: str) -> list[str]:
    """Read lines until one that starts with one of the words, and return its words."""
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(LONGEST_S):
        while line := (await process.stdout.readline()).decode().split():
            if line[0] in words:
                return line
    raise AssertionError(f"the client ended before it said {words}: {(await process.stderr.read()).decode()[-2000:]}")


async def stopped(process: Process) -> None:
    """Wait until it has stopped itself: it says so before, and a SIGCONT that comes too early wakes nobody."""
    client = psutil.Process(process.pid)
    await waiting(lambda: client.status() == psutil.STATUS_STOPPED, "the client has stopped itself")


async def ended(process: Process) -> None:
    """Wait for its end, which must be a good one."""
    async with asyncio.timeout(LONGEST_S):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]


def parts_of(process: Process) -> dict[str, psutil.Process]:
    """The engine's and the trainer's process."""
    found = {}
    for child in psutil.Process(process.pid).children():
        found["trainer" if any("worker" in word for word in child.cmdline()) else "engine"] = child
    return found


def stored_steps(root: Path) -> list[dict[str, str]]:
    """Digests of the committed steps' files, by step and name, every byte verified; no step is missing between them."""
    directory = root / "faults" / "models" / "victim" / "checkpoints"
    found = sorted((verify(path) for path in directory.iterdir() if path.name.isdigit()), key=lambda each: each.step)
    assert [manifest.step for manifest in found] == list(range(len(found)))
    return [{name: file.sha256 for name, file in manifest.files.items()} for manifest in found]


async def test_nine_steps_are_three_a_kill_a_resume_and_the_rest_bit_for_bit(tmp_path: Path, tiny_model: Path) -> None:
    """Also: what the kill cut short is not listed, and engine and trainer die with the client.

    Where the victim runs ahead of the one who kills it, they are more than nine.
    """
    async with victim(tmp_path / "killed", tiny_model, 1000) as process:
        assert await until(process, "served") == ["served", "1"]
        family = psutil.Process(process.pid).children(recursive=True)  # slow, so not where it counts
        while await until(process, "served") != ["served", "3"]:
            pass
        await until(process, "training")
        await asyncio.sleep(random.Random(SEED).uniform(0, 0.1))
        process.kill()
        assert await survivors(family, LONGEST_S) == []
    newest = len(stored_steps(tmp_path / "killed")) - 1
    assert newest >= 3
    steps = max(9, newest + 1)
    async with victim(tmp_path / "killed", tiny_model, steps - newest) as process:
        assert await until(process, "open") == ["open", str(newest)]
        await ended(process)
    async with victim(tmp_path / "whole", tiny_model, steps) as process:
        await ended(process)
    whole = stored_steps(tmp_path / "whole")
    assert stored_steps(tmp_path / "killed") == whole
    assert len(whole) == len({files[ADAPTER] for files in whole}) == steps + 1


async def test_trainer_killed_mid_step_is_started_again(tmp_path: Path, tiny_model: Path) -> None:
    async with victim(tmp_path, tiny_model, 3, 1, 3) as process:
        await stopped(process)
        trainer = parts_of(process)["trainer"]
        trainer.suspend()
        process.send_signal(signal.SIGCONT)
        assert await until(process, "training") == ["training", "1"]
        with pytest.raises(TimeoutError):  # the step waits for it
            await asyncio.wait_for(until(process, "served", "error"), 0.5)
        trainer.kill()
        start = time.perf_counter()
        with within(NOTICED_S, "a trainer that is killed is noticed"):
            assert await until(process, "error") == ["error", "TrainerUnavailableError", "True"]
        print(f"noticed after {time.perf_counter() - start:.2f} s")
        assert await until(process, "served") == ["served", "1"]
        assert await until(process, "served", "error") == ["served", "2"]
        await stopped(process)  # else it may have ended before its children are looked at
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGCONT)
        assert await until(process, "served", "error") == ["served", "3"]
        await ended(process)
        assert await survivors(family, LONGEST_S) == []
    assert len(stored_steps(tmp_path)) == 4


async def test_engine_killed_mid_step_the_step_is_published_once_it_is_back(tmp_path: Path, tiny_model: Path) -> None:
    async with victim(tmp_path, tiny_model, 2, 1, 2) as process:
        await stopped(process)
        family, parts = psutil.Process(process.pid).children(recursive=True), parts_of(process)
        parts["trainer"].suspend()  # so that the step goes on
        process.send_signal(signal.SIGCONT)
        parts["engine"].kill()
        parts["trainer"].resume()
        assert await until(process, "served", "error") == ["served", "1"]
        await stopped(process)
        family += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGCONT)
        assert await until(process, "served", "error") == ["served", "2"]
        await ended(process)
        assert await survivors(family, LONGEST_S) == []
    assert len(stored_steps(tmp_path)) == 3


@pytest.mark.parametrize("engine", ["alive", pytest.param("being started again", marks=pytest.mark.heavy)])
async def test_ctrl_c_mid_step(tmp_path: Path, tiny_model: Path, engine: str) -> None:
    async with victim(tmp_path, tiny_model, 1000) as process:
        await until(process, "served")
        family = psutil.Process(process.pid).children(recursive=True)
        if engine != "alive":
            parts_of(process)["engine"].kill()
            client = psutil.Process(process.pid)
            family += await waiting(lambda: set(client.children(recursive=True)) - set(family), "an engine is started")
        else:
            await until(process, "training")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(LONGEST_S):
            await process.communicate()
        assert process.returncode in (-signal.SIGINT, 130)
        assert await survivors(family, LONGEST_S) == []
    assert len(stored_steps(tmp_path)) >= 2


async def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path, tiny_model: Path) -> None:
    """Before it launches anything; once the first has been killed, the run is free."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(tmp_path), "plain", stdin=PIPE, stdout=PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    model = art.TrainableModel(name="r", project="p", base_model=str(tiny_model))
    children = set(psutil.Process().children(recursive=True))
    async with LocalBackend(path=tmp_path, engine="torch", trainer="torch") as backend:
        with pytest.raises(RunLockedError, match=f"run 'r' is held by process {holder.pid} on .*; end that process"):
            await model.register(backend)
        assert set(psutil.Process().children(recursive=True)) <= children
    holder.kill()
    await holder.communicate()
    RunDirectory.create_or_open(tmp_path, "p", "r", str(tiny_model), LoRAConfig()).close()
