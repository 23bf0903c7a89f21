"""What a run relies on, over the stores that come with core."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from art_core.file_store import FileStore
from art_core.fsspec_bucket import open_bucket
from art_core.object_store import ObjectStore
from tests.run_over_store import RunOverStore, Stores


class TestFile(RunOverStore):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> Stores:
        return lambda: FileStore(tmp_path / "store")


class TestFsspec(RunOverStore):
    single_writer = False

    @pytest.fixture
    def stores(self) -> Stores:
        url = f"memory://{uuid.uuid4().hex}"
        return lambda: ObjectStore(open_bucket(url, {}), url, self.single_writer)


class TestFsspecOfOneWriter(TestFsspec):
    single_writer = True
