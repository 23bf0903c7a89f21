"""Checkpoints on this machine: whole or not at all, one winner, nothing served is deleted."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from art_core import disk, local_store
from art_core.checkpoint import (
    ADAPTER,
    MANIFEST,
    Checkpoint,
    check_layout,
    manifest_bytes,
    read_manifest,
    verify,
    write_manifest,
)
from art_core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CommitConflictError,
    StoreError,
)
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.testing.condition import LONGEST_S
from tests.staged import BASE, stage_step

store = LocalStore()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


async def steps(run: Path) -> list[int]:
    return [stored.step for stored in await store.list(run)]


async def test_commit_list_fetch_round_trip(run: Path, tmp_path: Path) -> None:
    assert await store.list(run) == []
    checkpoint = stage_step(run, 7)
    stored = await store.commit(run, checkpoint)
    assert stored.directory == run / "checkpoints" / "0007"
    assert stored.manifest == checkpoint.manifest
    assert names(run) == ["0007"]
    assert verify(stored.directory, checkpoint.manifest)
    assert await store.list(run) == [stored]
    fetched = await store.fetch(stored, tmp_path / "copy")
    assert fetched == Checkpoint(tmp_path / "copy", checkpoint.manifest)
    for name in (*checkpoint.manifest.files, MANIFEST):
        assert (tmp_path / "copy" / name).read_bytes() == (stored.directory / name).read_bytes()


async def test_a_root_that_is_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    stored = await store.commit(tmp_path / "run", stage_step(tmp_path / "run", 1))
    assert await store.list(tmp_path / "run") == [stored]
    assert await store.delete(tmp_path / "run", [1], []) == [1]


async def test_list_is_by_number_not_by_name(run: Path) -> None:
    for step in (10000, 2, 9999, 0):
        await store.commit(run, stage_step(run, step))
    assert await steps(run) == [0, 2, 9999, 10000]


async def test_the_same_content_again_is_the_stored_one(run: Path) -> None:
    stored = await store.commit(run, stage_step(run, 3))
    again = stage_step(run, 3)
    later = again.manifest.model_copy(update={"metrics": {"time/step_s": 9.0}})
    assert await store.commit(run, Checkpoint(again.directory, later)) == stored
    assert names(run) == ["0003"]


async def test_other_content_is_refused_and_kept_staged(run: Path) -> None:
    stored = await store.commit(run, stage_step(run, 3))
    other = stage_step(run, 3, seed=99)
    with pytest.raises(
        CommitConflictError, match=r"another checkpoint stands at .*0003; delete step 3 first"
    ) as caught:
        await store.commit(run, other)
    assert caught.value.step == 3
    assert verify(other.directory)
    assert await store.list(run) == [stored]


async def test_of_many_commits_at_once_one_wins(run: Path) -> None:
    staged = [stage_step(run, 1, seed=seed) for seed in range(8)]
    results = await asyncio.gather(*(store.commit(run, each) for each in staged), return_exceptions=True)
    won = [i for i, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(won) == 1
    assert all(isinstance(result, CommitConflictError) for i, result in enumerate(results) if i not in won)
    assert (await store.list(run))[0].manifest == staged[won[0]].manifest


async def test_of_many_equal_commits_at_once_all_succeed(run: Path) -> None:
    results = await asyncio.gather(*(store.commit(run, stage_step(run, 1, seed=5)) for _ in range(8)))
    assert len({str(result) for result in results}) == 1
    assert names(run) == ["0001"]


async def test_a_staged_file_that_changed_is_not_committed(run: Path) -> None:
    checkpoint = stage_step(run, 1)
    os.truncate(checkpoint.directory / ADAPTER, 3)
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await store.commit(run, checkpoint)
    assert await steps(run) == []


@pytest.mark.parametrize("harm", ["no manifest", "short file", "empty"])
async def test_what_is_not_whole_is_left_out_and_makes_room(
    run: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        await store.commit(run, stage_step(run, step))
    damaged = run / "checkpoints" / "0002"
    if harm == "empty":
        shutil.rmtree(damaged)
        damaged.mkdir()
    elif harm == "no manifest":
        (damaged / MANIFEST).unlink()
    else:
        os.truncate(damaged / ADAPTER, 10)
    with caplog.at_level(logging.WARNING, "art.store"):
        assert await steps(run) == [1]
    assert "0002 is left out" in caplog.text
    stored = await store.commit(run, stage_step(run, 2))
    assert await steps(run) == [1, 2]
    assert verify(stored.directory)
    aside = [name for name in names(run) if name.startswith(".damaged-0002-")]
    assert len(aside) == 1, "what stood there is kept"


async def test_foreign_names_are_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = await store.commit(run, stage_step(run, 1))
    checkpoints = run / "checkpoints"
    shutil.copytree(stored.directory, checkpoints / "0009")
    shutil.copytree(stored.directory, checkpoints / ".staging-x")
    shutil.copytree(stored.directory, checkpoints / "latest")
    shutil.copytree(stored.directory, run / "elsewhere")
    elsewhere = run / "elsewhere" / MANIFEST
    elsewhere.write_bytes(manifest_bytes(stored.manifest.model_copy(update={"step": 8})))
    (checkpoints / "0008").symlink_to(run / "elsewhere")
    (checkpoints / "notes.txt").write_text("")
    assert await steps(run) == [1]
    assert read_manifest(checkpoints / "0008").step == 8
    assert "0009/manifest.json is of step 1" in caplog.text
    assert "0008 is a file or a link" in caplog.text


async def test_a_link_or_a_file_in_a_steps_place_can_be_deleted_and_what_it_leads_to_stays(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("keep")
    await store.commit(run, stage_step(run, 0))
    (run / "checkpoints" / "0007").symlink_to(tmp_path / "elsewhere")
    (run / "checkpoints" / "0008").write_text("odd")
    assert await store.delete(run, [7, 8], [0]) == [7, 8]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0000"]
    assert (tmp_path / "elsewhere" / "mine").read_text() == "keep"


async def test_steps_that_go_while_they_are_listed_are_no_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        await store.commit(run, stage_step(run, step))
    real: dict[str, Callable[..., object]] = {"read_manifest": read_manifest, "check_layout": check_layout}
    for name, function in real.items():

        def deleting(directory: Path, *rest: object, function: Callable[..., object] = function) -> object:
            local_store.delete_steps(RunDirectory(run), {1}, set())
            return function(directory, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(local_store, name, deleting)
            assert await steps(run) == [0, 2]
        await store.commit(run, stage_step(run, 1))


async def test_fetch_refuses_what_is_gone_corrupt_or_in_the_way(run: Path, tmp_path: Path) -> None:
    stored = await store.commit(run, stage_step(run, 1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(StoreError, match="it is not empty"):
        await store.fetch(stored, tmp_path / "full")
    data = bytearray((stored.directory / ADAPTER).read_bytes())
    data[-1] ^= 1
    (stored.directory / ADAPTER).write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await store.fetch(stored, tmp_path / "a")
    (stored.directory / ADAPTER).unlink()
    with pytest.raises(CheckpointCorruptError, match=f"{ADAPTER} is missing"):
        await store.fetch(stored, tmp_path / "b")
    await store.delete(run, [1], [])
    with pytest.raises(CheckpointNotFoundError, match="step 1 of run 'run' is no longer at"):
        await store.fetch(stored, tmp_path / "c")


async def test_delete_spares_the_protected(run: Path) -> None:
    for step in range(4):
        await store.commit(run, stage_step(run, step))
    with pytest.raises(StoreError, match=r"steps \[2\] are served, leased or the newest"):
        await store.delete(run, [0, 1, 2], [2, 3])
    assert await steps(run) == [0, 1, 2, 3]
    assert await store.delete(run, [1, 0, 77], [2, 3]) == [0, 1]
    assert await steps(run) == [2, 3]
    assert names(run) == ["0002", "0003"]
    assert await store.delete(run, [0, 1], []) == []


async def test_every_file_is_durable_before_it_shows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a power failure can't harm: files, manifest and directory; rename; parent."""
    events: list[tuple[str, str]] = []
    real_sync, real_rename, guard = disk.sync, os.rename, threading.Lock()

    def sync(path: Path) -> None:
        real_sync(path)
        with guard:
            events.append(("sync", path.name))

    def rename(old: Path, new: Path) -> None:
        real_rename(old, new)
        events.append(("rename", new.name))

    checkpoint = stage_step(run, 4)
    monkeypatch.setattr(disk, "sync", sync)
    monkeypatch.setattr(os, "rename", rename)
    await store.commit(run, checkpoint)
    staged = [*checkpoint.manifest.files, MANIFEST, checkpoint.directory.name]
    assert sorted(events[: len(staged)]) == sorted(("sync", name) for name in staged)
    assert events[len(staged) :] == [("rename", "0004"), ("sync", "checkpoints")]


async def test_a_cancelled_commit_has_ended_when_it_returns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on, real_rename = threading.Event(), threading.Event(), os.rename

    def rename(old: Path, new: Path) -> None:
        started.set()
        go_on.wait(LONGEST_S)
        real_rename(old, new)

    checkpoint = stage_step(run, 1)
    monkeypatch.setattr(os, "rename", rename)
    commit = asyncio.create_task(store.commit(run, checkpoint))
    assert await asyncio.to_thread(started.wait, LONGEST_S)
    commit.cancel()
    await asyncio.sleep(0)
    assert not commit.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await commit
    assert await steps(run) == [1]


async def test_ten_thousand_steps_are_listed_in_bounded_time(run: Path) -> None:
    """Each is looked at once: about 1 s on an idle machine, and never longer than a test may take."""
    first = stage_step(run, 0)
    checkpoints = RunDirectory(run).checkpoints
    for step in range(10_000):
        directory = checkpoints / f"{step:04d}"
        directory.mkdir()
        for name in first.manifest.files:
            os.link(first.directory / name, directory / name)
        (directory / MANIFEST).write_bytes(manifest_bytes(first.manifest.model_copy(update={"step": step})))
    start = time.perf_counter()
    assert await steps(run) == list(range(10_000))
    print(f"list of 10,000 steps: {time.perf_counter() - start:.2f} s")


async def test_the_run_directory_is_a_place_for_it(tmp_path: Path) -> None:
    """`write_manifest` on another file system's directory, or a path that is gone, is a typed refusal."""
    manifest = stage_step(tmp_path / "run", 1).manifest
    with pytest.raises(CheckpointCorruptError, match=r"gone is missing"):
        await store.commit(tmp_path / "run", Checkpoint(tmp_path / "gone", manifest))
    with pytest.raises(StoreError):
        write_manifest(tmp_path / "gone", run="run", step=1, base_model=BASE)
    assert read_manifest(stage_step(tmp_path / "run", 1).directory) == manifest
