"""A disk that is full or read-only while steps are made: a typed error, the last step served, and the same call again.

Real file systems where this user may mount one, else injected errors alone.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.checkpoint import verify
from art_core.errors import CheckpointError, RunError, StoreError
from art_core.local_store import LocalStore
from art_core.loop import train_step
from art_core.step import StepConfig
from art_core.testing.family import descendants
from tests.faults.kill import refusing
from tests.faults.life import groups, open_small
from tests.faults.mount import PAGE_BYTES, filled, free_bytes, mounted


def listed(run: Path) -> list[int]:
    """The run's steps, every byte of each verified."""
    found = asyncio.run(LocalStore().list(run))
    return [verify(stored.directory, stored.manifest).step for stored in found]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=lambda number: errno.errorcode[number])
async def test_every_write_of_a_step_is_refused_once(tmp_path: Path, number: int) -> None:
    backend = await open_small(tmp_path)
    run, config = backend.spec.run, StepConfig(learning_rate=1e-3)
    refused = 0
    for point in itertools.count():
        before = backend.route.current().policy.step
        with refusing(point, number) as failed:
            try:
                await train_step(backend, groups(), config)
            except (StoreError, CheckpointError) as error:
                refused += 1
                assert os.strerror(number) in str(error) and "again" in str(error)
                assert (error.run, error.step) == ("victim", before + 1) and error.stage
                assert backend.route.current().policy.step == before
        if not failed:
            break
        assert (await train_step(backend, groups(), config)).policy.step in (before + 1, before + 2)
        steps = await asyncio.to_thread(listed, run.path)
        assert steps == list(range(backend.route.current().policy.step + 1))
        for stale in run.checkpoints.glob(".*"):
            assert stale.name.startswith((".staging-", ".trash-"))
    await backend.close()
    assert refused > 15
    backend = await open_small(tmp_path)
    assert list(run.checkpoints.glob(".*")) == []
    await backend.close()


async def test_a_disk_that_is_full_in_the_middle_of_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """The real trainer, which writes in a process of its own; its log and the engine's are on the full disk too."""
    model = art.TrainableModel(name="full", project="faults", base_model=str(tiny_model))
    with mounted(tmp_path / "disk", "-o", "size=24m") as disk:
        async with LocalBackend(path=disk, engine="torch", trainer="torch") as backend:
            await model.register(backend)
            start_bytes = free_bytes(disk)
            await backend.train(model, groups(), learning_rate=1e-4)
            needed_bytes = start_bytes - free_bytes(disk)
            assert needed_bytes > 20 * PAGE_BYTES
            for part in (0, 0.1, 0.3, 0.6, 0.9, 1 - PAGE_BYTES / needed_bytes):
                before = await model.get_step(), model.get_inference_name()
                with filled(disk, int(needed_bytes * part)):
                    with pytest.raises(RunError, match="No space left on device; free space") as caught:
                        await backend.train(model, groups(), learning_rate=1e-4)
                    assert isinstance(caught.value, StoreError | CheckpointError)
                    assert (await model.get_step(), model.get_inference_name()) == before
                    asked = model.openai_client().chat.completions
                    answer = await asked.create(
                        model="full", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
                    )
                    assert answer.model == before[1]
                assert (await backend.train(model, groups(), learning_rate=1e-4)).step == before[0] + 1
        run = disk / "faults" / "models" / "full"
        assert await asyncio.to_thread(listed, run) == list(range(8))


async def test_a_read_only_disk_refuses_at_once_and_can_be_read(tiny_model: Path, tmp_path: Path) -> None:
    model = art.TrainableModel(name="victim", project="faults", base_model=str(tiny_model))
    with mounted(tmp_path / "disk") as disk:
        backend = await open_small(disk)
        await train_step(backend, groups(), StepConfig())
        await backend.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = descendants().keys()
        async with LocalBackend(path=disk, engine="torch", trainer="torch") as door:
            with pytest.raises(StoreError, match="Read-only file system; mount it writable or choose another path"):
                await model.register(door)
            assert descendants().keys() <= before, "it is refused before engine and trainer are launched"
        assert await asyncio.to_thread(listed, disk / "faults" / "models" / "victim") == [0, 1]
