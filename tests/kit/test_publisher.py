"""The publisher `reload` keeps every promise of a publisher."""

from __future__ import annotations

from typing import cast

import pytest

from art_core.part import PublisherPart
from art_core.plugins import load_part
from art_core.testing import PublisherConformance


class TestReloadPublisher(PublisherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return cast(PublisherPart, load_part("publisher", "reload"))
