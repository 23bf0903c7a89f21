"""The W&B store keeps every promise of a store, on a test server that the unmodified SDK speaks to."""

from __future__ import annotations

from typing import cast

import pytest
from art_wandb.version import TEXT

from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import StoreConformance
from tests.servers.wandb import ArtifactObjects, WandbServer


class TestWandbStore(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls, server: WandbServer) -> StorePart:
        return cast(StorePart, load_part("store", "wandb"))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, server: WandbServer) -> ArtifactObjects:
        return ArtifactObjects(server, TEXT)
