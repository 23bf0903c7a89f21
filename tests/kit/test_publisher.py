"""Publishers keep every promise of a publisher: `reload`, and one that brings steps elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from art_core.part import PublisherPart
from art_core.plugins import load_part
from art_core.testing import DeploymentConformance, DirectoryObjects, Outage, PublisherConformance
from tests.kit.directory_deployment import DirectoryOptions, directory_part, no_directory


class TestReloadPublisher(PublisherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return cast(PublisherPart, load_part("publisher", "reload"))


class TestDirectoryPublisher(DeploymentConformance):
    """One that serves nothing here, as somebody else would write it."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return directory_part()

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, tmp_path_factory: pytest.TempPathFactory) -> DirectoryOptions:
        return DirectoryOptions(root=str(tmp_path_factory.mktemp("far")))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, options: DirectoryOptions) -> DirectoryObjects:
        return DirectoryObjects(Path(options.root))

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, options: DirectoryOptions) -> Outage:
        return lambda: no_directory(Path(options.root))
