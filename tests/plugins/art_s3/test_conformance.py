"""The S3 store keeps every promise of a store, on a real server."""

from __future__ import annotations

from typing import Any, cast

import pytest
from art_s3.options import S3StoreOptions

from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import StoreConformance
from tests.plugins.art_s3.place import Place, S3Objects


class TestS3Store(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return cast(StorePart, load_part("store", "s3"))

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, client: Any, server: str) -> Place:
        return Place.make(client, S3StoreOptions(endpoint_url=server))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, place: Place) -> S3StoreOptions:
        return place.options

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, place: Place) -> S3Objects:
        return place.objects
