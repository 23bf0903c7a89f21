"""The file store, but `fetch` copies without looking at the bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from art_core.builtin.file import FileStore, FileStoreOptions
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import Checkpoint, StoredCheckpoint
from art_core.part import StorePart
from art_core.testing import StoreConformance


class TrustingStore(FileStore):
    """Copies whatever stands there."""

    async def fetch(self, stored: StoredCheckpoint, directory: Path) -> Checkpoint:
        if not stored.directory.exists():
            return await super().fetch(stored, directory)
        shutil.copytree(stored.directory, directory, dirs_exist_ok=True)
        return Checkpoint(directory, stored.manifest)


class TestTrustingStore(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return StorePart(
            name="file",
            options=FileStoreOptions,
            capabilities=Capabilities({Capability.CREATE_IF_ABSENT: FULL}),
            create=lambda options: TrustingStore(),
        )
