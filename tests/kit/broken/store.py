"""The file store, but it is careless: bytes are not looked at, nor is the case of names; see the class."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from art_core.builtin.file import FileStoreOptions
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER, Checkpoint, read_manifest
from art_core.errors import CommitConflictError
from art_core.file_store import FileStore
from art_core.local_store import read_step, require_unprotected
from art_core.part import StorePart
from art_core.protocols.store import StoreEntry
from art_core.run import RunDirectory
from art_core.run_key import RunKey
from art_core.testing import DirectoryObjects, StoreConformance


class CarelessStore(FileStore):
    """Gives out what stands there, tells no names apart by case, wants retries to measure the same, sweeps too much.

    What it deletes it wipes first, step by step, while it is still listed; a process that is to be killed at it is then
    still there, however late that comes.
    """

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

    def _directory(self, run: RunKey) -> RunDirectory:
        return super()._directory(RunKey(run.project, run.run.lower()))

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        entry = await super().commit(run, checkpoint)
        if entry.manifest != checkpoint.manifest:
            raise CommitConflictError("it is not the same in every respect", step=entry.step)
        return entry

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        incomplete = [each.step for each in await self.list(run) if each.dropped]
        return len(await self.delete(run, incomplete, [])) + await super().sweep(run, older_than_s)

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        require_unprotected(steps, protected)
        for entry in await self.list(run):
            if entry.step in steps:
                adapter = self._directory(run).step_directory(entry.step) / ADAPTER
                adapter.write_bytes(bytes(adapter.stat().st_size))
                await asyncio.sleep(0.1)
        if multiprocessing.parent_process() is not None:
            await asyncio.Event().wait()
        return await super().delete(run, steps, protected)


def create(options: FileStoreOptions) -> CarelessStore:
    return CarelessStore(Path(str(options.url)))


class TestCarelessStore(StoreConformance):
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
