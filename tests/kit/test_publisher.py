"""Publishers keep every promise of a publisher: `reload`, and one that brings steps elsewhere."""

from __future__ import annotations

from typing import cast

import pytest

from art_core.part import PublisherPart
from art_core.plugins import load_part
from art_core.testing import PublisherConformance
from tests.kit.directory_deployment import DirectoryDeployment, directory_part


class TestReloadPublisher(PublisherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return cast(PublisherPart, load_part("publisher", "reload"))


class TestDirectoryPublisher(DirectoryDeployment):
    """One that serves nothing here, as somebody else would write it."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return directory_part()
