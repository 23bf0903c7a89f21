"""What a run relies on, over the S3 store."""

from __future__ import annotations

import pytest

from tests.plugins.art_s3.place import Place
from tests.run_over_store import RunOverStore, Stores


class TestS3(RunOverStore):
    @pytest.fixture
    def stores(self, place: Place) -> Stores:
        return place.store
