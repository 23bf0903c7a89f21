"""What every test of a store begins with."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from art_core.checkpoint import Checkpoint, verify
from art_core.config import PartOptions
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError
from art_core.part import StorePart
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey
from art_core.testing.promise import promised
from art_core.testing.shelf import Shelf

Objects = MutableMapping[str, bytes]
"""Everything in the place that a store writes to, by name: how the kit sees it, and damages it, past the store."""

Outage = Callable[[], AbstractContextManager[object]]
"""Inside the block the place answers nothing, or refuses everything."""


class DirectoryObjects(MutableMapping[str, bytes]):
    """The files below a directory, for a store that keeps files.

    Args:
        root: The directory; need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, key: str) -> bytes:
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(key) from error

    def __setitem__(self, key: str, value: bytes) -> None:
        (self._root / key).write_bytes(value)

    def __delitem__(self, key: str) -> None:
        (self._root / key).unlink()

    def __iter__(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._root):
            yield from (str((Path(directory) / name).relative_to(self._root)) for name in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Maker:
    """Makes the store under test anew, here or in another process."""

    create: Callable[[Any], CheckpointStore | None]
    options: PartOptions

    def __call__(self) -> CheckpointStore:
        """A store; options that ask for none are the wrong ones to test."""
        made = self.create(self.options)
        promised(made is not None, "`options` of the kit ask for a store", made)
        assert made is not None  # for the type checker
        return made


@pytest.mark.asyncio(loop_scope="session")
class StoreCase:
    """Fixtures that the author of a store gives: `part`, `objects`, and `options` where the defaults don't do.

    `part.create` must be a function of a module, so that another process can be given it.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        """The part under test, as the plugin registers it."""
        raise NotImplementedError("override the fixture `part`: return load_part('store', '<your part>')")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, part: StorePart) -> PartOptions:
        """The part's options; the defaults unless overridden."""
        return part.options()

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls) -> Objects:
        """Everything in the place that those options name, past the store."""
        raise NotImplementedError("override the fixture `objects`: a mapping of names to bytes, e.g. DirectoryObjects")

    @pytest.fixture
    def make(self, part: StorePart, options: PartOptions) -> Maker:
        """Makes further stores of the same place."""
        return Maker(part.create, options)

    @pytest_asyncio.fixture(loop_scope="session")
    async def store(self, make: Maker) -> CheckpointStore:
        """A store, made anew for every test, and checked as at a start."""
        store = make()
        await store.check()
        return store

    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        """A run on this machine whose name is not ASCII; checkpoints are staged there."""
        (tmp_path / "base").mkdir()
        config = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        run = tmp_path / f"läufer 日本 🏃 e\u0301 100%?#&+ {uuid.uuid4().hex[:12]}"
        run.mkdir()
        return Shelf(run, tmp_path / "base")

    @pytest.fixture
    def run(self, shelf: Shelf) -> RunKey:
        """The same run as the store knows it."""
        return RunKey("projekt ß = 1", shelf.run.name)


async def fetched(store: CheckpointStore, run: RunKey, entry: StoreEntry, directory: Path) -> Checkpoint:
    """Fetch what was listed, into a directory of its own name, and hold the result to the manifest."""
    checkpoint = await store.fetch(run, entry.step, directory)
    promised(checkpoint == Checkpoint(directory, entry.manifest), "fetch gives what was listed", checkpoint.manifest)
    verify(directory, entry.manifest)
    return checkpoint


async def is_whole(store: CheckpointStore, run: RunKey, entry: StoreEntry, directory: Path) -> bool:
    """Whether every byte of what was listed can be had."""
    try:
        await fetched(store, run, entry, directory)
    except (CheckpointCorruptError, CheckpointNotFoundError):
        return False
    return True


async def leaves_young(store: CheckpointStore, run: RunKey, objects: Objects) -> None:
    """Sweep what is older than an hour: nothing, for all of it was made just now."""
    before = dict(objects)
    swept = await store.sweep(run, 3600.0)
    promised(swept == 0 and dict(objects) == before, "sweep leaves what is younger than it was told", swept)


def added(objects: Objects, before: Mapping[str, bytes] | set[str]) -> list[str]:
    """Names of what has come since, sorted."""
    return sorted(set(objects) - set(before))


def counterparts(mine: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """The objects of a step beside those of another that could be taken for them: of the same name, else any.

    Where names say nothing there may be more objects on one side: a store may keep what two steps share once.
    """
    names = {key.rpartition("/")[2]: key for key in others}
    same = [(key, names[name]) for key in mine if (name := key.rpartition("/")[2]) in names]
    return same or list(zip(mine, others, strict=False))
