"""The file store, and dropped optimizer state, under kill -9 at every call that changes a file.

The victims are forked from this warm process; see `kill` for what a kill does and does not show.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from art_core.checkpoint import OPTIMIZER, verify
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.run_key import RunKey
from tests.faults.kill import every_kill
from tests.staged import stage_step

KEY = RunKey("p", "r")


def checkpoints(root: Path) -> Path:
    return root / "p" / "models" / "r" / "checkpoints"


def listed(root: Path) -> dict[int, bool]:
    """Step to whether it has its optimizer state; every byte of each is verified."""
    found = {}
    for entry in asyncio.run(FileStore(root).list(KEY)):
        directory = checkpoints(root) / f"{entry.step:04d}"
        assert verify(directory, entry.manifest) == entry.manifest
        found[entry.step] = not entry.dropped
    return found


def copy(root: Path, source: Path, step: int) -> None:
    asyncio.run(FileStore(root).commit(KEY, stage_step(source / KEY.run, step)))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Makes a store that holds steps 0 and 1."""
    for step in (0, 1):
        copy(tmp_path / "template", tmp_path / "source", step)
    count = itertools.count()
    return lambda: Path(shutil.copytree(tmp_path / "template", tmp_path / str(next(count))))


def swept(root: Path) -> None:
    """Nothing is left but what is listed."""
    asyncio.run(FileStore(root).sweep(KEY, 0.0))
    assert sorted(path.name for path in checkpoints(root).iterdir()) == [f"{step:04d}" for step in listed(root)]


def test_a_copy_killed_anywhere(fresh: Callable[[], Path], tmp_path: Path) -> None:
    seen = set()

    def check(root: Path) -> None:
        steps = [*listed(root)]
        assert steps in ([0, 1], [0, 1, 2])
        seen.add(len(steps))
        swept(root)
        copy(root, tmp_path / "source", 2)
        assert [*listed(root)] == [0, 1, 2]

    kills = every_kill(fresh, lambda root: copy(root, tmp_path / "source", 2), check)
    print(f"{kills} kills of a copy")
    assert kills > 60 and seen == {2, 3}


def test_a_deletion_in_a_store_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def delete(root: Path) -> None:
        asyncio.run(FileStore(root).delete(KEY, [0], [1]))

    def check(root: Path) -> None:
        assert [*listed(root)] in ([0, 1], [1])
        delete(root)
        swept(root)
        assert [*listed(root)] == [1]

    kills = every_kill(fresh, delete, check)
    print(f"{kills} kills of a deletion")
    assert kills > 10


def test_dropping_optimizer_state_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def drop(root: Path) -> None:
        asyncio.run(FileStore(root).drop_optimizer(KEY, [0]))

    def check(root: Path) -> None:
        found = listed(root)
        assert [*found] == [0, 1] and found[1]
        drop(root)
        assert listed(root) == {0: False, 1: True}
        assert not (checkpoints(root) / "0000" / OPTIMIZER).exists()

    kills = every_kill(fresh, drop, check)
    print(f"{kills} kills of a drop")
    assert kills > 8


def test_sweeping_killed_anywhere(fresh: Callable[[], Path]) -> None:
    def littered() -> Path:
        root = fresh()
        for name in (".staging-a", ".trash-b"):
            (checkpoints(root) / name).mkdir()
            (checkpoints(root) / name / "x.json").write_text("{}")
        return root

    def sweep(root: Path) -> None:
        asyncio.run(FileStore(root).sweep(KEY, 0.0))

    def check(root: Path) -> None:
        assert [*listed(root)] == [0, 1]
        swept(root)

    kills = every_kill(littered, sweep, check)
    print(f"{kills} kills of a sweep")
    assert kills > 8


def test_fetching_killed_anywhere_leaves_the_store_as_it_was(fresh: Callable[[], Path], tmp_path: Path) -> None:
    count = itertools.count()

    def fetch(root: Path) -> None:
        asyncio.run(FileStore(root).fetch(KEY, 1, tmp_path / f"fetched {next(count)} {root.name}"))

    def check(root: Path) -> None:
        assert [*listed(root)] == [0, 1]
        asyncio.run(LocalStore().list(root / "p/models/r"))

    kills = every_kill(fresh, fetch, check)
    print(f"{kills} kills of a fetch")
    assert kills > 20
