"""A publisher into a directory that takes whatever stands at a step's place for the step."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_core.checkpoint import StoredCheckpoint
from art_core.part import PublisherPart
from art_core.testing import DeploymentConformance, DirectoryObjects, Outage
from tests.kit.directory_deployment import DirectoryOptions, DirectoryPublisher, directory_part, no_directory


class TrustingPublisher(DirectoryPublisher):
    """Looks at names only."""

    def require_same(self, place: Path, stored: StoredCheckpoint) -> None:
        """Believe it."""


class TestTrustingPublisher(DeploymentConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return directory_part(TrustingPublisher)

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
