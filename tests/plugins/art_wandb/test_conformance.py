"""W&B's store and publisher keep every promise, on a test server that the unmodified SDK speaks to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from art_wandb.version import TEXT

from art_core.part import PublisherPart, StorePart
from art_core.plugins import load_part
from art_core.testing import DeploymentConformance, Outage, StoreConformance
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


class TestWandbPublisher(DeploymentConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls, server: WandbServer) -> PublisherPart:
        return cast(PublisherPart, load_part("publisher", "wandb"))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, server: WandbServer) -> ArtifactObjects:
        return ArtifactObjects(server, TEXT)

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, server: WandbServer) -> Outage:
        @contextmanager
        def refusing() -> Iterator[None]:
            server.fault = lambda method, asked: 503
            yield
            server.fault = None

        return refusing
