"""An object's bytes as they come, through botocore; see ADR 0006 for why not through obstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

_PIECE_BYTES = 1 << 20
_RESUMES = 3
"""So often a body is asked for again without anything having come."""
_GONE = ("NoSuchKey", "404")


def pieces(client: Any, bucket: str, key: str) -> Iterator[bytes] | None:
    """Ask for an object; what breaks off is asked for again from there, while it is still the same object.

    Args:
        client: Botocore's.
        bucket: Its name.
        key: The object's.

    Returns:
        Its bytes in pieces of 1 MB; None where there is no such object.

    Raises:
        BotoCoreError: It can't be reached, or has broken off too often without anything new.
        ClientError: The server refuses, or it is another object by now.
    """
    where = {"Bucket": bucket, "Key": key}
    try:
        found = client.get_object(**where)
    except ClientError as error:
        if error.response["Error"]["Code"] in _GONE:
            return None
        raise
    return _resumed(client, where, found)


def _resumed(client: Any, where: dict[str, str], found: Any) -> Iterator[bytes]:
    at, vain = 0, 0
    while True:
        try:
            with closing(found["Body"]) as body:
                while piece := body.read(_PIECE_BYTES):
                    at, vain = at + len(piece), 0
                    yield piece
            return
        except (HTTPClientError, IncompleteReadError) as error:
            vain += 1
            if vain > _RESUMES:
                raise
            broken = error
        found = client.get_object(**where, Range=f"bytes={at}-", IfMatch=found["ETag"])
        if "ContentRange" not in found:
            raise broken
