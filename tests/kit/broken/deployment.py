"""A publisher into a directory that takes whatever stands at a step's place for the step."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_core.checkpoint import StoredCheckpoint
from art_core.part import PublisherPart
from tests.kit.directory_deployment import DirectoryDeployment, DirectoryPublisher, directory_part


class TrustingPublisher(DirectoryPublisher):
    """Looks at names only."""

    def require_same(self, place: Path, stored: StoredCheckpoint) -> None:
        """Believe it."""


class TestTrustingPublisher(DirectoryDeployment):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return directory_part(TrustingPublisher)
