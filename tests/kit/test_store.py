"""The file store keeps every promise of a store."""

from __future__ import annotations

from typing import cast

import pytest

from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import StoreConformance


class TestFileStore(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return cast(StorePart, load_part("store", "file"))
