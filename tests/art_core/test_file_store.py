"""The file store as a place for copies; what any store promises is in `tests/kit/test_store.py`."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from art_core import file_store
from art_core.builtin.file import FileStoreOptions
from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, Checkpoint, StoredCheckpoint
from art_core.config import Environment, LoRAConfig
from art_core.errors import CheckpointCorruptError, ConfigError, StoreError, StoreUnavailableError
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.part import StorePart
from art_core.plugins import Plugins, load_part
from art_core.run import RunDirectory
from art_core.run_key import RunKey
from art_core.selection import select
from tests.staged import stage_step

KEY = RunKey("p", "r")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def staged(tmp_path: Path, step: int) -> Checkpoint:
    return stage_step(tmp_path / "here" / KEY.run, step)


def test_it_comes_through_the_front_door(tmp_path: Path) -> None:
    part = load_part("store", "file")
    assert isinstance(part, StorePart)
    assert Capability.CREATE_IF_ABSENT in part.capabilities
    assert part.create(FileStoreOptions()) is None
    assert isinstance(part.create(FileStoreOptions(url=str(tmp_path))), FileStore)
    for url in ("relative/path", "file://otherhost/path", "http://host/path"):
        with pytest.raises(ConfigError, match=r"option 'url' is"):
            FileStoreOptions.parse({"url": url})


async def test_it_is_chosen_by_a_url(tmp_path: Path) -> None:
    url = (tmp_path / "mit Umlaut ä").as_uri()
    for selection, environment in ((url, Environment()), (None, Environment(store=url))):
        selected = select(Plugins(), "store", selection, environment)
        assert isinstance(selected.part, StorePart)
        made = selected.part.create(selected.options)
        assert made is not None
        await made.commit(KEY, staged(tmp_path, 1))
        assert (tmp_path / "mit Umlaut ä" / "p" / "models" / "r" / "checkpoints" / "0001").is_dir()


async def test_its_place_is_a_root_of_runs(store: FileStore, tmp_path: Path) -> None:
    for step in (0, 1):
        await store.commit(KEY, staged(tmp_path, step))
    run = RunDirectory.create_or_open(tmp_path / "store", KEY.project, KEY.run, "tiny", LoRAConfig())
    assert [stored.step for stored in await LocalStore().list(run.path)] == [0, 1]
    run.close()


async def test_a_place_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in (FileStore(tmp_path / "file"), FileStore(tmp_path / "file" / "below")):
        with pytest.raises(StoreError, match=str(tmp_path / "file")):
            await store.check()
        with pytest.raises(StoreError, match=str(tmp_path / "file")):
            await store.commit(KEY, staged(tmp_path, 1))


async def test_many_may_make_sure_at_once_and_leave_nothing(tmp_path: Path) -> None:
    """As where several machines start on one share; nor does what a kill left stay."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".art-probe").touch()
    for _ in range(10):
        await asyncio.gather(*(FileStore(tmp_path / "store").check() for _ in range(16)))
    assert list((tmp_path / "store").iterdir()) == []


async def test_a_place_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    """A share that is not mounted, or a URL with a slip: only `check` and a first commit make the directory."""
    store = FileStore(tmp_path / "store")
    calls: list[Callable[[], Awaitable[object]]] = [store.runs, lambda: store.list(KEY), lambda: store.sweep(KEY, 0)]
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=r"there is no directory .*store; is it mounted"):
            await call()
    await store.commit(KEY, staged(tmp_path, 1))
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError, match="is it mounted"):
        await store.commit(KEY, staged(tmp_path, 2))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("gone", ["the place", "the staging directory"])
async def test_a_place_that_goes_amid_a_copy_is_not_taken_for_a_damaged_step(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """What is unavailable is tried again; of the step, which is whole, nobody is told to delete it."""
    copy_checkpoint = file_store.copy_checkpoint

    def vanishing(source: Checkpoint, directory: Path) -> Checkpoint:
        directory.rmdir() if gone == "the staging directory" else (tmp_path / "store").rename(tmp_path / "away")
        return copy_checkpoint(source, directory)

    await store.check()
    monkeypatch.setattr(file_store, "copy_checkpoint", vanishing)
    with pytest.raises(
        StoreError, match="No such file" if gone == "the staging directory" else "is it mounted"
    ) as seen:
        await store.commit(KEY, staged(tmp_path, 1))
    assert seen.value.retryable is (gone == "the place")


async def test_a_step_of_another_run_is_left_out(
    store: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await store.commit(KEY, staged(tmp_path, 1))
    (tmp_path / "store" / "p" / "models" / "r").rename(tmp_path / "store" / "p" / "models" / "s")
    other = RunKey("p", "s")
    assert await store.list(other) == []
    assert "is left out: it is of run 'r'" in caplog.text
    with pytest.raises(CheckpointCorruptError, match=r"manifest.json is of run 'r'"):
        await store.fetch(other, 1, tmp_path / "fetched")


async def test_what_is_no_run_of_ours_is_passed_over(store: FileStore, tmp_path: Path) -> None:
    await store.commit(KEY, staged(tmp_path, 1))
    for name in (".hidden", "back\\slash", os.fsdecode(b"no utf-8 \xff")):
        for project, run in ((name, "r"), ("p", name)):
            (tmp_path / "store" / project / "models" / run / "checkpoints" / "0001").mkdir(parents=True)
    assert await store.runs() == [KEY]


async def test_checkpoints_that_a_link_leads_out_of_the_place_are_not_touched(store: FileStore, tmp_path: Path) -> None:
    await store.commit(KEY, staged(tmp_path, 1))
    run = tmp_path / "store" / "p" / "models" / "r"
    (run / "checkpoints").rename(tmp_path / "outside")
    (run / "checkpoints").symlink_to(tmp_path / "outside")
    calls: Sequence[Callable[[], Awaitable[object]]] = (
        lambda: store.list(KEY),
        lambda: store.commit(KEY, staged(tmp_path, 2)),
        lambda: store.delete(KEY, [1], []),
        lambda: store.fetch(KEY, 1, tmp_path / "fetched"),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"leads out of .* through a link"):
            await call()
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["0001"]


async def test_a_step_that_goes_while_it_is_listed_is_no_error(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        await store.commit(KEY, staged(tmp_path, step))
    listed = file_store.list_steps

    def deleting(run: RunDirectory) -> list[StoredCheckpoint]:
        found = listed(run)
        shutil.rmtree(run.step_directory(1))
        return found

    monkeypatch.setattr(file_store, "list_steps", deleting)
    assert [each.step for each in await store.list(KEY)] == [2]


async def test_sweep_spares_what_is_in_the_making(store: FileStore, tmp_path: Path) -> None:
    await store.commit(KEY, staged(tmp_path, 1))
    checkpoints = tmp_path / "store" / "p" / "models" / "r" / "checkpoints"
    for name in (".staging-old", ".trash-old", ".staging-live"):
        (checkpoints / name).mkdir()
        (checkpoints / name / ADAPTER).write_bytes(b"x")
    old = time.time() - 7200
    for name in (".staging-old", ".trash-old"):
        os.utime(checkpoints / name / ADAPTER, (old, old))
        os.utime(checkpoints / name, (old, old))
    os.utime(checkpoints / ".staging-live", (old, old))  # a file in it is being written
    assert await store.sweep(KEY, 3600) == 2
    assert sorted(path.name for path in checkpoints.iterdir()) == [".staging-live", "0001"]
    assert await store.sweep(RunKey("p", "none"), 0) == 0


async def test_a_full_disk_leaves_nothing(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commit(KEY, staged(tmp_path, 1))
    checkpoint, real = staged(tmp_path, 2), os.write

    def write(fd: int, data: bytes) -> int:
        if len(data) > 500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError, match=r"No space left on device; free space"):
        await store.commit(KEY, checkpoint)
    monkeypatch.undo()
    assert [entry.step for entry in await store.list(KEY)] == [1]
    assert [path.name for path in (tmp_path / "store" / "p" / "models" / "r" / "checkpoints").iterdir()] == ["0001"]
    await store.commit(KEY, checkpoint)


async def test_every_byte_is_durable_before_it_shows(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power failure can't harm, seen at the system's calls: files and directory; rename; parent."""
    changes: list[tuple[str, int]] = []
    real_write, real_sync, real_rename = os.write, os.fsync, os.rename

    def write(fd: int, data: bytes) -> int:
        changes.append(("write", os.fstat(fd).st_ino))
        return real_write(fd, data)

    def fsync(fd: int) -> None:
        real_sync(fd)
        changes.append(("force", os.fstat(fd).st_ino))

    def rename(old: Path, new: Path) -> None:
        real_rename(old, new)
        changes.append(("rename", new.stat().st_ino))

    checkpoint = staged(tmp_path, 1)
    await store.commit(KEY, staged(tmp_path, 0))  # makes the directories
    for name, function in (("write", write), ("fsync", fsync), ("rename", rename)):
        monkeypatch.setattr(os, name, function)
    await store.commit(KEY, checkpoint)
    step = tmp_path / "store" / "p" / "models" / "r" / "checkpoints" / "0001"
    shown = changes.index(("rename", step.stat().st_ino))
    for path in (step, *step.iterdir()):
        last = [kind for kind, inode in changes[:shown] if inode == path.stat().st_ino][-1:]
        assert last == ["force"], path.name
    assert ("force", step.parent.stat().st_ino) in changes[shown:]
    assert "write" not in [kind for kind, _ in changes[shown:]]
