"""The stores keep every promise of a store."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import fsspec
import pytest

from art_core.builtin.file import FileStoreOptions
from art_core.builtin.fsspec import FsspecStoreOptions
from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import DirectoryObjects, Outage, StoreConformance
from tests.kit.sqlite_store import SqliteObjects, SqliteStoreOptions, sqlite_part


def place_of(options: FileStoreOptions) -> Path:
    return Path(cast(str, options.url).removeprefix("file://").replace("%20", " "))


class TestFileStore(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return cast(StorePart, load_part("store", "file"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, tmp_path_factory: pytest.TempPathFactory) -> FileStoreOptions:
        return FileStoreOptions(url=tmp_path_factory.mktemp("a store").as_uri())

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, options: FileStoreOptions) -> DirectoryObjects:
        return DirectoryObjects(place_of(options))

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, options: FileStoreOptions) -> Outage:
        @contextmanager
        def not_mounted() -> Iterator[None]:
            away = place_of(options).rename(place_of(options).with_name("away"))
            yield
            away.rename(place_of(options))

        return not_mounted


class MemoryObjects(MutableMapping[str, bytes]):
    """What fsspec keeps in memory, past the store."""

    def __init__(self, root: str) -> None:
        self._files: MutableMapping[str, bytes] = fsspec.filesystem("memory").get_mapper(root)

    def __getitem__(self, key: str) -> bytes:
        return self._files[key]

    def __setitem__(self, key: str, value: bytes) -> None:
        self._files[key] = value

    def __delitem__(self, key: str) -> None:
        del self._files[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._files))

    def __len__(self) -> int:
        return len(self._files)


class TestFsspecStore(StoreConformance):
    """In memory: a killed process takes its memory along, so what a kill leaves there is shown by real servers."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return cast(StorePart, load_part("store", "fsspec"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> FsspecStoreOptions:
        return FsspecStoreOptions(url="memory://kit/prefix")

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls) -> MemoryObjects:
        return MemoryObjects("/kit")


class TestFsspecStoreOfOneWriter(TestFsspecStore):
    """The same under the lease that stands in for create-if-absent."""

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> FsspecStoreOptions:
        return FsspecStoreOptions(url="memory://kit/leased", single_writer=True)


class TestSqliteStore(StoreConformance):
    """One that somebody else would write, over nothing that the other stores stand on."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return sqlite_part()

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, tmp_path_factory: pytest.TempPathFactory) -> SqliteStoreOptions:
        return SqliteStoreOptions(path=str(tmp_path_factory.mktemp("database") / "checkpoints"))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, options: SqliteStoreOptions) -> SqliteObjects:
        return SqliteObjects(options.path)

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, options: SqliteStoreOptions) -> Outage:
        @contextmanager
        def no_database() -> Iterator[None]:
            path = Path(options.path)
            kept = path.rename(path.with_name("kept"))
            path.mkdir()
            yield
            path.rmdir()
            kept.rename(path)

        return no_database
