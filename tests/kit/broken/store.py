"""The file store, but `fetch` copies without looking at the bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from art_core.builtin.file import FileStoreOptions
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import Checkpoint, read_manifest
from art_core.file_store import FileStore
from art_core.local_store import read_step
from art_core.part import StorePart
from art_core.run_key import RunKey
from art_core.testing import DirectoryObjects, StoreConformance


class TrustingStore(FileStore):
    """Copies whatever stands there, once it has been seen to be whole."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        if directory.exists():
            return await super().fetch(run, step, directory)
        place = self._directory(run).step_directory(step)
        read_step(self._directory(run), place)
        shutil.copytree(place, directory)
        return Checkpoint(directory, read_manifest(directory))


def create(options: FileStoreOptions) -> TrustingStore:
    return TrustingStore(Path(str(options.url)))


class TestTrustingStore(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        capabilities = Capabilities({Capability.CREATE_IF_ABSENT: FULL})
        return StorePart(name="file", options=FileStoreOptions, capabilities=capabilities, create=create)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, tmp_path_factory: pytest.TempPathFactory) -> FileStoreOptions:
        return FileStoreOptions(url=str(tmp_path_factory.mktemp("store")))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, options: FileStoreOptions) -> DirectoryObjects:
        return DirectoryObjects(Path(str(options.url)))
