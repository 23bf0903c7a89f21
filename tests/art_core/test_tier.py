"""A run's steps on two levels: here first, then in the store, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from art_core import replication
from art_core.base_model import BaseIdentity, base_digest
from art_core.checkpoint import ADAPTER, OPTIMIZER, Checkpoint, StoredCheckpoint, verify, write_manifest
from art_core.config import LoRAConfig, Timeouts
from art_core.errors import (
    CheckpointCorruptError,
    CommitConflictError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.retention import Retention
from art_core.run import RunDirectory
from art_core.run_key import RunKey
from art_core.testing.condition import LONGEST_S, until
from art_core.tier import MAX_LAG_STEPS, Durable, TieredStore
from tests.art_core.faulty_store import FaultyStore
from tests.staged import BASE, stage_step, write_step_files

KEY = RunKey("p", "r")
QUICK = Timeouts(store_wait_s=0.3, store_close_s=0.1)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "_FIRST_DELAY_S", 0.01)


@pytest.fixture
def remote(tmp_path: Path) -> FaultyStore:
    return FaultyStore(tmp_path / "remote")


Machine = Callable[..., TieredStore]


@pytest.fixture
async def machine(tmp_path: Path, remote: FaultyStore) -> AsyncIterator[Machine]:
    """Makes a machine's side of the run by the machine's name; all are closed at the end."""
    made: list[tuple[TieredStore, RunDirectory]] = []

    def make(name: str = "one", durable: Durable = "local", **given: Any) -> TieredStore:
        lora = given.get("lora", LoRAConfig())
        run = RunDirectory.create_or_open(tmp_path / name, KEY.project, KEY.run, "tiny", lora)
        timeouts, retention = (
            given.get("timeouts", Timeouts(store_wait_s=LONGEST_S, store_close_s=LONGEST_S)),
            given.get("retention", Retention()),
        )
        store = TieredStore(run, given.get("remote", remote), durable, timeouts, retention)
        made.append((store, run))
        return store

    yield make
    for store, run in made:
        await store.close()
        run.close()


async def commit(store: TieredStore, *steps: int, seed: int | None = None) -> StoredCheckpoint:
    for step in steps:
        stored = await store.commit(stage_step(store.run.path, step, seed))
    return stored


async def held(remote: FileStore) -> list[int]:
    return [entry.step for entry in await remote.list(KEY)]


async def copied(store: TieredStore) -> None:
    """Wait until all is copied."""
    await until(lambda: not store.metrics()["store/lag_steps"], "all is copied")


async def left(store: TieredStore) -> None:
    """End as a machine that is switched off: nothing is waited for."""
    store.timeouts = QUICK
    await store.close()
    store.run.close()


async def test_without_a_store_there_is_this_machine_only(machine: Machine) -> None:
    store = machine(remote=None)
    await store.open("tiny")
    stored = await commit(store, 0)
    await store.ready()
    await store.settle()
    assert (await store.list(), store.metrics()) == ([stored], {})
    assert await store.delete([0], []) == [0]


async def test_steps_are_copied_in_order_behind_the_training(machine: Machine, remote: FaultyStore) -> None:
    store = machine()
    await store.open("tiny")
    remote.gate.clear()
    async with asyncio.timeout(LONGEST_S):
        for step in range(3):
            stored = await commit(store, step)
            await store.settle()
            await store.ready()
            assert verify(stored.directory)
    lag = store.metrics()
    assert lag["store/lag_steps"] == 3 and lag["store/lag_s"] > 0
    assert await held(remote) == []
    remote.gate.set()
    await copied(store)
    assert store.metrics() == {"store/lag_steps": 0.0, "store/lag_s": 0.0}
    assert (await held(remote), remote.calls) == ([0, 1, 2], [0, 1, 2])


async def test_durable_remote_waits_for_the_store(machine: Machine, remote: FaultyStore) -> None:
    store = machine(durable="remote")
    await store.open("tiny")
    remote.gate.clear()
    await commit(store, 0)
    settling = asyncio.create_task(store.settle())
    await asyncio.sleep(0.05)
    assert not settling.done()
    remote.gate.set()
    await settling
    assert await held(remote) == [0]


async def test_durable_remote_gives_up_with_a_retryable_error(machine: Machine, remote: FaultyStore) -> None:
    store = machine(durable="remote", timeouts=QUICK)
    await store.open("tiny")
    remote.errors.extend(StoreUnavailableError("503 slow down") for _ in range(1000))
    stored = await commit(store, 0)
    with pytest.raises(
        StoreUnavailableError, match=r"1 steps were not copied .* within 0.3 s \(503 slow down\); they are safe"
    ):
        await store.settle()
    assert await store.list() == [stored]
    remote.errors.clear()
    store.timeouts = Timeouts(store_wait_s=LONGEST_S)
    await store.settle()
    assert await held(remote) == [0]


async def test_a_store_that_is_away_is_tried_again(
    machine: Machine, remote: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine()
    await store.open("tiny")
    remote.errors.extend([StoreUnavailableError("no route"), StoreUnavailableError("RequestTimeTooSkewed")])
    await commit(store, 0, 1)
    await copied(store)
    assert (await held(remote), remote.calls) == ([0, 1], [0, 0, 0, 1])
    assert "can't copy step 0 now, trying again in about 0.0 s: no route" in caplog.text


@pytest.mark.parametrize("error", [StoreError("no permission"), ValueError("a fault of the store's own")])
async def test_an_error_that_does_not_pass_halts_until_it_is_mended(
    machine: Machine, remote: FaultyStore, error: Exception
) -> None:
    store = machine()
    await store.open("tiny")
    remote.errors.extend([error, error, error])
    await commit(store, 0)
    for _ in range(2):
        with pytest.raises(StoreError, match=str(error)):
            await store.ready()
    assert store.metrics()["store/lag_steps"] == 1
    remote.errors.clear()
    await store.ready()
    await commit(store, 1)
    await copied(store)
    assert await held(remote) == [0, 1]


async def test_training_waits_while_too_many_steps_are_not_copied(machine: Machine, remote: FaultyStore) -> None:
    store = machine(timeouts=QUICK)
    await store.open("tiny")
    remote.gate.clear()
    for step in range(MAX_LAG_STEPS):
        await store.ready()
        await commit(store, step)
    with pytest.raises(StoreUnavailableError, match=f"{MAX_LAG_STEPS} steps were not copied"):
        await store.ready()
    store.timeouts = Timeouts(store_wait_s=LONGEST_S)
    waiting = asyncio.create_task(store.ready())
    remote.gate.set()
    await waiting


async def test_what_a_crash_left_uncopied_is_copied_at_the_next_start(machine: Machine, remote: FaultyStore) -> None:
    store = machine()
    await store.open("tiny")
    await commit(store, 0, 1)
    await copied(store)
    remote.gate.clear()
    await commit(store, 2, 3)
    await left(store)
    remote.gate.set()
    assert await held(remote) == [0, 1]
    again = machine()
    await again.open("tiny")
    await copied(again)
    assert (await held(remote), remote.calls[-2:]) == ([0, 1, 2, 3], [2, 3])


async def test_a_lost_machine_goes_on_from_the_store(machine: Machine, remote: FaultyStore) -> None:
    store = machine()
    await store.open("tiny")
    last = await commit(store, 0, 1, 7)
    await copied(store)
    other = machine("two")
    await other.open("tiny")
    (restored,) = await other.list()
    assert restored.manifest == last.manifest
    assert restored.directory != last.directory and verify(restored.directory)
    await commit(other, 8)
    await copied(other)
    assert await held(remote) == [0, 1, 7, 8]
    assert sorted(path.name for path in (other.run.path / "checkpoints").iterdir()) == ["0007", "0008"]


async def test_an_old_machine_goes_on_from_what_a_newer_one_has_made(machine: Machine, remote: FaultyStore) -> None:
    one, two = machine(), machine("two")
    await one.open("tiny")
    await commit(one, 0, 1)
    await copied(one)
    await left(one)
    await two.open("tiny")
    await commit(two, 2)
    await copied(two)
    again = machine()
    await again.open("tiny")
    assert [stored.step for stored in await again.list()] == [0, 1, 2]


async def test_two_machines_that_went_different_ways_are_told(machine: Machine, remote: FaultyStore) -> None:
    one, two = machine(), machine("two")
    await one.open("tiny")
    await commit(one, 0, 1)
    await copied(one)
    await two.open("tiny")
    await commit(two, 2, seed=50)
    await copied(two)
    await commit(one, 2)
    with pytest.raises(CommitConflictError, match="another checkpoint stands at"):
        async with asyncio.timeout(LONGEST_S):
            while True:
                await one.ready()
    await left(one)
    again = machine()
    with pytest.raises(CommitConflictError, match="step 2 of run 'r' is another one in the store than here") as told:
        await again.open("tiny")
    await left(again)
    here = again.run.checkpoints
    assert f"go on from the store's once {here} is removed" in str(told.value)
    shutil.rmtree(here)
    advised = machine()
    stored = await advised.open("tiny")
    assert stored is not None and stored.step == 2
    assert [entry.manifest for entry in await remote.list(KEY)][-1] == stored.manifest


@pytest.mark.parametrize(
    ("lora", "message"), [(LoRAConfig(rank=4), "LoRA rank 8, not 4"), (LoRAConfig(alpha=1), "LoRA alpha 16.0, not 1.0")]
)
async def test_a_step_of_another_shape_is_not_taken_over(
    machine: Machine, remote: FaultyStore, lora: LoRAConfig, message: str
) -> None:
    await remote.commit(KEY, stage_step(machine("source").run.path, 1))
    other = machine("two", lora=lora)
    with pytest.raises(ConfigError, match=message):
        await other.open("tiny")
    assert list(other.run.checkpoints.iterdir()) == []


async def test_a_step_of_another_base_model_is_not_taken_over(
    machine: Machine, remote: FaultyStore, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    await remote.commit(KEY, stage_step(machine("source").run.path, 1))
    other = machine("two")
    with pytest.raises(ConfigError, match=f"base model '{BASE.digest}', not '{base_digest(model)}'"):
        await other.open(str(model))
    assert list(other.run.checkpoints.iterdir()) == []


async def test_what_is_damaged_in_the_store_is_not_taken_over(machine: Machine, remote: FaultyStore) -> None:
    source = machine("source")
    await remote.commit(KEY, stage_step(source.run.path, 1))
    path = next((source.run.path.parents[3] / "remote").rglob(ADAPTER))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    other = machine("two")
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await other.open("tiny")
    assert list(other.run.checkpoints.iterdir()) == []


async def test_arrays_that_are_not_finite_are_not_taken_over(machine: Machine, remote: FaultyStore) -> None:
    source = machine("source").run
    directory = source.stage()
    write_step_files(directory, 1)
    (directory / ADAPTER).write_bytes(save({"a": np.array([1.0, np.nan], np.float32)}))
    checkpoint = write_manifest(directory, run=KEY.run, step=1, base_model=BaseIdentity(name="tiny", digest="0" * 64))
    await remote.commit(KEY, checkpoint)
    other = machine("two")
    with pytest.raises(CheckpointCorruptError, match=f"{ADAPTER} .* array 'a' holds values that are not finite"):
        await other.open("tiny")
    assert list(other.run.checkpoints.iterdir()) == []


async def test_a_store_that_can_not_be_reached_stops_the_start(machine: Machine, remote: FaultyStore) -> None:
    """Without knowing what it holds this machine could make steps that another one has made."""
    store = machine()
    remote.away = StoreUnavailableError("no route to host")
    with pytest.raises(StoreUnavailableError, match="no route"):
        await store.open("tiny")


async def test_what_is_deleted_here_is_deleted_there(machine: Machine, remote: FaultyStore) -> None:
    store = machine()
    await store.open("tiny")
    await commit(store, 0, 1, 2)
    remote.gate.clear()
    await commit(store, 3, 4)
    assert await store.delete([0, 1, 3], [4]) == [0, 1, 3]
    remote.gate.set()
    await copied(store)
    await store.close()
    assert await held(remote) == [2, 4]
    assert [stored.step for stored in await machine_steps(store)] == [2, 4]


async def machine_steps(store: TieredStore) -> list[StoredCheckpoint]:
    return list(await LocalStore().list(store.run.path))


async def test_a_step_that_is_damaged_here_holds_up_no_other(
    machine: Machine, remote: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine()
    await store.open("tiny")
    remote.gate.clear()
    stored = await commit(store, 0)
    await commit(store, 1)
    (stored.directory / ADAPTER).write_bytes(b"x")
    remote.gate.set()
    await copied(store)
    assert await held(remote) == [1]
    with caplog.at_level(logging.ERROR, "art.store"):
        assert "step 0 is damaged here and can't be copied" in caplog.text


async def test_a_step_that_is_whole_here_and_damaged_there_halts_copying(machine: Machine, remote: FaultyStore) -> None:
    """It is no damage here, so it is not passed over."""
    store = machine()
    await store.open("tiny")
    remote.errors.extend([CheckpointCorruptError("its manifest there was changed")] * 2)
    await commit(store, 0)
    with pytest.raises(CheckpointCorruptError, match="its manifest there was changed"):
        async with asyncio.timeout(LONGEST_S):
            while True:
                await store.ready()
    await store.ready()
    await copied(store)
    assert await held(remote) == [0]


async def test_durable_remote_says_that_a_step_is_damaged_here(machine: Machine, remote: FaultyStore) -> None:
    store = machine(durable="remote")
    await store.open("tiny")
    remote.gate.clear()
    stored = await commit(store, 0)
    (stored.directory / ADAPTER).write_bytes(b"x")
    remote.gate.set()
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await store.settle()
    await commit(store, 1)
    await store.settle()
    assert await held(remote) == [1]


def test_a_program_that_runs_one_event_loop_after_another(tmp_path: Path) -> None:
    run = RunDirectory.create_or_open(tmp_path / "one", "p", "r", "tiny", LoRAConfig())
    remote = FileStore(tmp_path / "remote")
    store = TieredStore(run, remote, "remote", Timeouts(), Retention())

    async def step(number: int) -> None:
        await store.ready()
        await store.commit(stage_step(run.path, number))
        await store.settle()

    asyncio.run(store.open("tiny"))
    for number in range(3):
        asyncio.run(step(number))
    assert asyncio.run(held(remote)) == [0, 1, 2]
    asyncio.run(store.close())
    run.close()


async def test_the_copy_is_the_checkpoint(machine: Machine, remote: FaultyStore, tmp_path: Path) -> None:
    store = machine(durable="remote")
    await store.open("tiny")
    stored = await commit(store, 5)
    await store.settle()
    fetched = await remote.fetch(KEY, 5, tmp_path / "fetched")
    assert fetched == Checkpoint(tmp_path / "fetched", stored.manifest)


def optimizers(store: TieredStore) -> list[int]:
    """Steps on this machine that have their optimizer state."""
    return sorted(int(path.parent.name) for path in store.run.checkpoints.glob(f"*/{OPTIMIZER}"))


async def test_old_optimizer_state_goes_here_and_there(machine: Machine, remote: FaultyStore) -> None:
    store = machine()
    await store.open("tiny")
    for step in range(5):
        stored = await commit(store, step)
        await copied(store)
        await store.retain([step])
    assert optimizers(store) == [3, 4]
    assert [each.step for each in await store.list()] == [0, 1, 2, 3, 4]
    for each in await store.list():
        verify(each.directory)
    await store.close()
    entries = await remote.list(KEY)
    assert [entry.step for entry in entries if not entry.dropped] == [3, 4] and len(entries) == 5
    assert verify(stored.directory)


async def test_what_waits_to_be_copied_loses_nothing(machine: Machine, remote: FaultyStore) -> None:
    store = machine(retention=Retention(latest=1, optimizer=1))
    await store.open("tiny")
    remote.gate.clear()
    for step in range(4):
        await commit(store, step)
        await store.retain([step])
    assert optimizers(store) == [0, 1, 2, 3]
    remote.gate.set()
    await copied(store)
    await store.retain([3])
    assert [each.step for each in await store.list()] == [3]
    await store.close()
    assert await held(remote) == [3]


async def test_steps_are_kept_by_number_by_metric_and_while_they_are_served(machine: Machine) -> None:
    store = machine(remote=None, retention=Retention(latest=2, best="val/reward", every=4, optimizer=None))
    await store.open("tiny")
    for step in range(10):
        await commit(store, step)
        store.run.append_history({"training_step": step, "val/reward": -abs(step - 3)})
    await store.retain([6])
    assert [each.step for each in await store.list()] == [0, 3, 4, 6, 8, 9]
    assert optimizers(store) == [0, 3, 4, 6, 8, 9]
    again = machine("two", remote=None, retention=Retention(latest=1))
    await again.open("tiny")
    await commit(again, 1, 2)
    await again.close()
    await again.retain([])
    assert [each.step for each in await again.list()] == [2]


async def test_a_machine_that_lost_its_own_keeps_the_store_in_order(machine: Machine, remote: FaultyStore) -> None:
    one = machine()
    await one.open("tiny")
    await commit(one, 0, 1, 2)
    await copied(one)
    await left(one)
    two = machine("two", retention=Retention(latest=2, optimizer=1))
    await two.open("tiny")
    await commit(two, 3)
    await copied(two)
    await two.retain([])
    await two.close()
    entries = await remote.list(KEY)
    assert [(entry.step, bool(entry.dropped)) for entry in entries] == [(2, True), (3, False)]
