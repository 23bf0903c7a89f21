"""The S3 store keeps every promise of a store, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from art_s3.options import S3StoreOptions

from art_core.part import StorePart
from art_core.plugins import load_part
from art_core.testing import Outage, StoreConformance
from tests.plugins.art_s3.place import Place, S3Objects
from tests.plugins.art_s3.proxy import Spoil, proxy


class TestS3Store(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        return cast(StorePart, load_part("store", "s3"))

    @pytest.fixture(scope="class")
    @classmethod
    def spoil(cls) -> Spoil:
        return Spoil()

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, client: Any, server: str, spoil: Spoil) -> Iterator[Place]:
        with proxy(server, spoil) as address:
            yield Place.make(client, S3StoreOptions(endpoint_url=address))

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, spoil: Spoil) -> Outage:
        @contextmanager
        def outage() -> Iterator[None]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(spoil, "answer", lambda method, path: (403, "AccessDenied"))
                yield

        return outage

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, place: Place) -> S3StoreOptions:
        return place.options

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, place: Place) -> S3Objects:
        return place.objects
