"""The stores keep every promise of a store."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from art_core.builtin.file import FileStoreOptions
from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import DirectoryObjects, StoreConformance


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
        return DirectoryObjects(Path(cast(str, options.url).removeprefix("file://").replace("%20", " ")))
