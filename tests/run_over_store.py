"""What a run relies on, over any store: a class of tests whose store is a fixture.

A machine is a root of runs; what is lost with it, or left undone by its end, the store and the next start make good.
"""

from __future__ import annotations

import pickle
import shutil
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from art_core.checkpoint import ADAPTER, OPTIMIZER, Checkpoint, verify, write_manifest
from art_core.config import LoRAConfig, Timeouts
from art_core.errors import CheckpointCorruptError, CommitConflictError, StoreError, StoreUnavailableError
from art_core.fork import ForkSource, ForkTarget, fork_checkpoint
from art_core.local_store import LocalStore
from art_core.protocols.store import CheckpointStore
from art_core.retention import Retention
from art_core.run import RunDirectory, run_path
from art_core.run_key import RunKey
from art_core.tier import TieredStore
from art_core.transfer import fetched_source, pull, pull_copy
from tests.faults.mount import PAGE_BYTES, filled, mounted
from tests.staged import BASE, stage_step, write_step_files

Stores = Callable[[], CheckpointStore]

HOSTILE: Mapping[str, bytes] = {
    "a pickle": pickle.dumps({"weight": [0.0] * 100}),
    "a header of a gigabyte": struct.pack("<Q", 1 << 30) + b"{}",
    "a NaN": save({"a": np.array([1.0, np.nan], np.float32)}),
}


LARGE_PAGES = 64
"""Of an optimizer state that a full disk cuts in two."""


class Machine:
    """A root of runs with one run in it, which this process holds."""

    def __init__(self, root: Path, key: RunKey, store: CheckpointStore) -> None:
        self.root, self.key = root, key
        self.run = RunDirectory.create_or_open(root, key.project, key.run, "tiny", LoRAConfig())
        self.steps = TieredStore(self.run, store, "remote", Timeouts(store_close_s=0.1), Retention())

    async def make(self, step: int, seed: int | None = None) -> Checkpoint:
        """Commit a step here and wait until the store has it."""
        staged = stage_step(self.run.path, step, seed)
        await self.steps.commit(staged)
        await self.steps.settle()
        return staged

    async def end(self) -> None:
        await self.steps.close()
        self.run.close()


class RunOverStore:
    """Fixture that a store gives: `stores`, which makes further stores of one place."""

    @pytest.fixture
    def key(self, tmp_path: Path) -> RunKey:
        """A run of the test's own."""
        return RunKey("machines", tmp_path.name)

    async def test_nothing_is_lost_between_machines(self, stores: Stores, key: RunKey, tmp_path: Path) -> None:
        """Steps that were not copied are at the next start; a machine with nothing goes on; two are told apart."""
        one = Machine(tmp_path / "one", key, stores())
        assert await one.steps.open("tiny") is None
        await one.make(0)
        await one.end()
        for step in (1, 2):  # made, and not copied when the machine went down
            await LocalStore().commit(one.run.path, stage_step(one.run.path, step))
        one = Machine(tmp_path / "one", key, stores())
        await one.steps.open("tiny")
        await one.steps.settle()
        assert [entry.step for entry in await stores().list(key)] == [0, 1, 2]

        two = Machine(tmp_path / "two", key, stores())
        restored = await two.steps.open("tiny")
        assert restored is not None and restored.step == 2
        assert restored.manifest == verify(one.run.step_directory(2))
        assert (restored.directory / OPTIMIZER).exists()
        made = await two.make(3)
        with pytest.raises(CommitConflictError, match="another checkpoint stands at"):
            await one.make(3, seed=99)
        assert [stored.step for stored in await one.steps.list()] == [0, 1, 2, 3], "what was made here stays here"
        await one.end()
        await two.end()
        again = Machine(tmp_path / "one", key, stores())
        with pytest.raises(CommitConflictError, match=r"step 3 of run .* is another one in the store than here"):
            await again.steps.open("tiny")
        await again.end()
        entries = await stores().list(key)
        assert [entry.step for entry in entries] == [0, 1, 2, 3] and entries[-1].manifest == made.manifest

    async def test_hostile_contents_are_never_taken_in(self, stores: Stores, key: RunKey, tmp_path: Path) -> None:
        """Whoever wrote the files wrote the manifest too: a start, a pull and a fork each refuse, and leave nothing."""
        source = RunDirectory(run_path(tmp_path / "source", key.project, key.run))
        for step, (what, data) in enumerate(HOSTILE.items()):
            directory = source.stage()
            write_step_files(directory, step)
            (directory / ADAPTER).write_bytes(data)
            await stores().commit(key, write_manifest(directory, run=key.run, step=step, base_model=BASE))
            machine = Machine(tmp_path / f"machine {step}", key, stores())
            with pytest.raises(CheckpointCorruptError, match=ADAPTER):
                await machine.steps.open("tiny")
            await machine.end()
            assert list(machine.run.checkpoints.iterdir()) == [], what
            with pytest.raises(CheckpointCorruptError, match=ADAPTER):
                await pull(stores(), key, step, tmp_path / "pulled")
            with pytest.raises(CheckpointCorruptError, match=ADAPTER):
                await pull_copy(stores(), key, step, tmp_path / "copied")
            target = ForkTarget(tmp_path / "forked", key.project, "new", "tiny", "tiny", LoRAConfig())
            with pytest.raises(CheckpointCorruptError, match=ADAPTER):
                async with fetched_source(stores(), ForkSource(tmp_path, key.project, key.run), None) as fetched:
                    await fork_checkpoint(LocalStore(), fetched, target)
        left = [
            path for name in ("pulled", "copied", "forked") for path in (tmp_path / name).rglob("*") if path.is_file()
        ]
        assert left == []

    async def test_a_disk_that_is_full_while_a_step_comes(self, stores: Stores, key: RunKey, tmp_path: Path) -> None:
        """A start and a pull each refuse and leave nothing behind; once there is room the same start goes on."""
        source = RunDirectory(run_path(tmp_path / "source", key.project, key.run))
        directory = source.stage()
        write_step_files(directory, 0)
        (directory / OPTIMIZER).write_bytes(save({"a": np.zeros(LARGE_PAGES * PAGE_BYTES // 4, np.float32)}))
        made = write_manifest(directory, run=key.run, step=0, base_model=BASE)
        await stores().commit(key, made)
        with mounted(tmp_path / "disk", "-o", "size=4m") as disk:
            machine = Machine(disk, key, stores())
            for pages in (0, 1, LARGE_PAGES // 2, LARGE_PAGES + 1):
                calls: list[Callable[[], Awaitable[object]]] = [
                    lambda: machine.steps.open("tiny"),
                    lambda: pull(stores(), key, 0, disk),
                    lambda: stores().fetch(key, 0, disk / "fetched"),
                ]
                for call in calls:
                    with (
                        filled(disk, pages * PAGE_BYTES),
                        pytest.raises(StoreError, match=r"No space left on device.*; free space") as caught,
                    ):
                        await call()
                    assert not isinstance(caught.value, StoreUnavailableError)
                assert list(machine.run.checkpoints.iterdir()) == []
                shutil.rmtree(disk / "fetched")
                await machine.steps.close()
            restored = await machine.steps.open("tiny")
            assert restored is not None and verify(restored.directory) == made.manifest
            await machine.end()
        assert [entry.manifest for entry in await stores().list(key)] == [made.manifest]
