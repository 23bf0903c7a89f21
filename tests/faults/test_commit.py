"""A run's files under kill -9, and under a disk that refuses, at every single call that changes them (`kill`)."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from art_core import disk
from art_core.checkpoint import Checkpoint, verify
from art_core.config import LoRAConfig
from art_core.errors import CommitConflictError, StoreError
from art_core.fork import ForkSource, ForkTarget, fork_checkpoint
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from tests.faults.kill import end_of, every_kill, in_fork, killed_at, refusing
from tests.staged import stage_step

store = LocalStore()


def listed(run: Path) -> list[int]:
    """The listed steps, every byte of each verified."""
    found = asyncio.run(store.list(run))
    for stored in found:
        assert verify(stored.directory, stored.manifest) == stored.manifest
    return [stored.step for stored in found]


def commit(run: Path, step: int, seed: int | None = None) -> None:
    asyncio.run(store.commit(run, stage_step(run, step, seed)))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Makes a run that holds steps 0 and 1."""
    template = tmp_path / "template" / "run"
    for step in (0, 1):
        commit(template, step)
    count = itertools.count()

    def make() -> Path:
        return Path(shutil.copytree(template, tmp_path / str(next(count)) / "run"))

    return make


def take_over(run: Path) -> None:
    """What the next owner does first, less the identity."""
    RunDirectory(run)._sweep()


def no_leftovers(run: Path) -> None:
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_a_commit_killed_anywhere(fresh: Callable[[], Path]) -> None:
    seen = set()

    def check(run: Path) -> None:
        steps = listed(run)
        assert steps in ([0, 1], [0, 1, 2])
        seen.add(len(steps))
        take_over(run)
        no_leftovers(run)
        commit(run, 2)
        assert listed(run) == [0, 1, 2]
        no_leftovers(run)

    kills = sum(every_kill(fresh, lambda run: commit(run, 2), check) for _ in range(2))
    print(f"{kills} kills of a commit")
    assert kills > 80
    assert seen == {2, 3}


def test_a_commit_over_a_damaged_step_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def damaged() -> Path:
        run = fresh()
        os.truncate(run / "checkpoints" / "0001" / "manifest.json", 5)
        return run

    def check(run: Path) -> None:
        assert listed(run) in ([0], [0, 1])
        take_over(run)
        commit(run, 1)
        assert listed(run) == [0, 1]

    assert every_kill(damaged, lambda run: commit(run, 1), check) > 30


def test_a_delete_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def check(run: Path) -> None:
        assert listed(run) in ([0, 1], [1])
        take_over(run)
        no_leftovers(run)
        asyncio.run(store.delete(run, [0], [1]))
        assert listed(run) == [1]

    kills = every_kill(fresh, lambda run: asyncio.run(store.delete(run, [0], [1])), check)
    assert kills > 10


def test_a_fork_killed_anywhere(tmp_path: Path) -> None:
    """The new run has the step whole, or it may be forked into again; the source is as it was."""
    source = ForkSource(tmp_path / "template", "p", "old")
    run = RunDirectory.create_or_open(source.root, "p", "old", "tiny", LoRAConfig())
    commit(run.path, 7)
    run.close()
    count = itertools.count()

    def make() -> Path:
        (root := tmp_path / str(next(count))).mkdir()
        return root

    def fork(root: Path) -> None:
        target = ForkTarget(root, "p", "new", "tiny", "tiny", LoRAConfig())
        asyncio.run(fork_checkpoint(store, source, target))

    def check(root: Path) -> None:
        path = root / "p/models/new"
        if listed(path) == []:
            fork(root)
        assert listed(path) == [7]
        RunDirectory.create_or_open(root, "p", "new", "tiny", LoRAConfig()).close()
        no_leftovers(path)
        assert listed(run.path) == [7]

    kills = every_kill(make, fork, check)
    print(f"{kills} kills of a fork")
    assert kills > 60


def test_state_and_history_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def made() -> Path:
        run = fresh()
        RunDirectory(run).write_state({"step": 1})
        RunDirectory(run).append_history({"step": 1})
        with (run / "history.jsonl").open("a") as file:
            file.write('{"step": 1.5')  # torn before
        return run

    def work(path: Path) -> None:
        RunDirectory(path).append_history({"step": 2})
        RunDirectory(path).write_state({"step": 2})

    def check(path: Path) -> None:
        run = RunDirectory(path)
        assert run.read_state() in ({"step": 1}, {"step": 2})
        assert run.history() in ([{"step": 1}], [{"step": 1}, {"step": 2}])
        before = run.history()
        work(path)
        assert run.history() == [*before, {"step": 2}]
        assert run.read_state() == {"step": 2}

    assert every_kill(made, work, check) > 15


def test_creating_a_run_killed_anywhere(tmp_path: Path) -> None:
    count = itertools.count()

    def make() -> Path:
        path = tmp_path / str(next(count))
        path.mkdir()
        return path

    def work(root: Path) -> None:
        RunDirectory.create_or_open(root, "p", "r", "base", LoRAConfig()).close()

    def check(root: Path) -> None:
        run = RunDirectory.create_or_open(root, "p", "r", "base", LoRAConfig())
        assert run.record().base_model == "base"
        run.close()

    assert every_kill(make, work, check) > 20


REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
def test_a_disk_that_refuses_is_a_typed_error_and_changes_nothing(fresh: Callable[[], Path], number: int) -> None:
    """Refused at every call in turn; the same staged checkpoint is then committed."""
    seen = set()
    for point in itertools.count():
        run = fresh()
        with refusing(point, number) as failed:
            try:
                checkpoint = stage_step(run, 2)
            except StoreError as error:
                checkpoint, refused = None, error
        if checkpoint is None:
            seen.add(failed[0])
            assert os.strerror(number) in str(refused) and "again" in str(refused)
            assert listed(run) == [0, 1]
            continue
        break
    staging = point
    for point in itertools.count():
        run = fresh()
        checkpoint = stage_step(run, 2)
        with refusing(point, number) as failed:
            try:
                asyncio.run(store.commit(run, checkpoint))
            except StoreError as error:
                assert os.strerror(number) in str(error) and str(run) in str(error) and "again" in str(error)
        if not failed:
            break
        seen.update(failed)
        assert listed(run) in ([0, 1], [0, 1, 2])
        asyncio.run(store.commit(run, checkpoint))
        assert listed(run) == [0, 1, 2]
        no_leftovers(run)
    assert staging >= 3 and point >= 15
    assert seen == {"mkdir", "open", "write", "fsync", "rename"}


@pytest.mark.parametrize("number", REFUSALS, ids=lambda number: errno.errorcode[number])
def test_a_history_or_state_that_is_refused_stands_as_before(fresh: Callable[[], Path], number: int) -> None:
    run = RunDirectory(fresh())
    run.write_state({"step": 1})
    run.append_history({"step": 1})
    for change in (lambda: run.write_state({"step": 2}), lambda: run.append_history({"step": 2})):
        for point in itertools.count():
            before = run.history()
            with refusing(point, number) as failed:
                try:
                    change()
                except StoreError as error:
                    assert str(run.path) in str(error) and os.strerror(number) in str(error)
            if not failed:
                break
            assert run.read_state() in ({"step": 1}, {"step": 2})
            assert run.history() in (before, [*before, {"step": 2}])
    assert run.read_state() == {"step": 2}


def test_a_disk_full_in_the_middle_of_a_line(fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write, then ENOSPC: the torn line is left out and repaired."""
    run, real = RunDirectory(fresh()), os.write
    run.append_history({"step": 1})

    def write(fd: int, data: memoryview) -> int:
        if len(data) > 5:
            return real(fd, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError, match="No space left on device; free space"):
        run.append_history({"step": 2})
    monkeypatch.undo()
    assert run.history() == [{"step": 1}]
    run.append_history({"step": 3})
    assert run.history() == [{"step": 1}, {"step": 3}]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    disk.write(tmp_path / "x", bytes(range(100)))
    assert (tmp_path / "x").read_bytes() == bytes(range(100))


def test_committers_that_race_and_die(fresh: Callable[[], Path]) -> None:
    """Two processes commit other contents of one step while a third dies half-way: one winner, whole."""

    def lose(run: Path) -> None:
        with suppress(CommitConflictError):
            commit(run, 2, seed=12)

    for point in range(0, 40, 4):
        run = fresh()
        staged = [stage_step(run, 2, seed) for seed in (10, 11)]

        def race(checkpoint: Checkpoint, run: Path = run) -> None:
            try:
                asyncio.run(store.commit(run, checkpoint))
            except CommitConflictError:
                os._exit(2)

        pids = [in_fork(lambda each=each: race(each)) for each in staged]
        killed_at(point, lambda run=run: lose(run))
        codes = sorted(os.WEXITSTATUS(end_of(pid)) for pid in pids)
        assert codes in ([0, 2], [2, 2])
        assert listed(run) == [0, 1, 2]
