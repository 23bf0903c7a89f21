"""The publisher `reload`, but a step that is found stale stays loaded."""

from __future__ import annotations

import pytest

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.checkpoint import StoredCheckpoint
from art_core.errors import StaleWeightsError
from art_core.part import PublisherPart
from art_core.policy import PublishedPolicy
from art_core.testing import PublisherConformance


class LitteringPublisher(ReloadPublisher):
    """Loads the stale step again after the refusal, which is as if it had stayed."""

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        try:
            return await super().publish(name, stored)
        except StaleWeightsError:
            await self._engine.load_adapter(name, stored)
            raise


class TestLitteringPublisher(PublisherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> PublisherPart:
        return PublisherPart(name="reload", options=ReloadOptions, create=LitteringPublisher)
