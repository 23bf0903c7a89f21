"""A file on its way down, over connections that break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from art_s3.bucket import S3Bucket

from art_core.errors import StoreUnavailableError
from art_core.file_record import record
from tests.plugins.art_s3.place import Place
from tests.plugins.art_s3.proxy import Spoil, proxy

NO_LIMIT = 1 << 40


@contextmanager
def spoilt(place: Place, server: str, spoil: Spoil) -> Iterator[S3Bucket]:
    with proxy(server, spoil) as address:
        yield S3Bucket(place.options.model_copy(update={"endpoint_url": address}))


def asked(spoil: Spoil) -> int:
    return len([path for method, path in spoil.seen if method == "GET" and path.endswith("/file")])


async def test_what_breaks_off_goes_on_from_there(place: Place, server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(10 << 20))
    spoil = Spoil(cut=lambda method, path: (3 << 20) + 5)
    with spoilt(place, server, spoil) as bucket:
        await bucket.upload("file", tmp_path / "file")
        seen = await bucket.download("file", tmp_path / "got", NO_LIMIT)
    assert seen == record(tmp_path / "file") == record(tmp_path / "got")
    assert asked(spoil) == 4, "after 3, 6 and 9 MiB; and nothing comes twice but the piece that was cut"


async def test_other_content_is_not_put_behind_it(place: Place, server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(4 << 20))
    spoil = Spoil()
    with spoilt(place, server, spoil) as bucket:
        await bucket.upload("file", tmp_path / "file")

        def cut(method: str, path: str) -> int | None:
            if method == "GET":
                place.objects["some/prefix/file"] = b"other"
            return 2 << 20

        spoil.cut = cut
        with pytest.raises(StoreUnavailableError, match="PreconditionFailed"):
            await bucket.download("file", tmp_path / "got", NO_LIMIT)


SIGNED = pytest.mark.skipif("ART_TEST_S3" in os.environ, reason="a header that was signed can't be taken away")


@pytest.mark.parametrize("headers", [(), pytest.param(("range",), marks=SIGNED)])
async def test_what_never_comes_whole_is_given_up(
    place: Place, server: str, tmp_path: Path, headers: tuple[str, ...]
) -> None:
    """Be it that nothing comes at all, or that the server can't go on in the midst of an object."""
    (tmp_path / "file").write_bytes(os.urandom(4 << 20))
    spoil = Spoil(cut=lambda method, path: (2 << 20 if headers else 0) if method == "GET" else None)
    spoil.drop_headers = headers
    with spoilt(place, server, spoil) as bucket:
        await bucket.upload("file", tmp_path / "file")
        with pytest.raises(StoreUnavailableError, match="can't read s3://"):
            await bucket.download("file", tmp_path / "got", NO_LIMIT)
    assert asked(spoil) == (2 if headers else 4)


async def test_an_object_that_is_not_there(place: Place, server: str, tmp_path: Path) -> None:
    with spoilt(place, server, Spoil()) as bucket:
        assert await bucket.download("file", tmp_path / "got", NO_LIMIT) is None
    assert not (tmp_path / "got").exists()
