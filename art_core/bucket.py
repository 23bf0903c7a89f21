"""What checkpoints need of an object store: a few calls on named objects. `object_store` builds commits out of them.

This is no seam for users: it is what stores of ours for different client libraries have in common. Keys are plain
text without a leading slash. Every method turns its library's exceptions into ours: `StoreUnavailableError` where the
same call may succeed later, `StoreError` where it will not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from art_core.file_record import FileRecord


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    size_bytes: int
    modified_s: float
    """When it was written, by the server's clock, in seconds since 1970."""
    tag: str
    """Another text once the object has other content."""


class Bucket(Protocol):
    """Named objects, each written whole or not at all, and seen by everybody once written."""

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, or replace it."""
        ...

    async def create(self, key: str, data: bytes) -> bool:
        """Write a small object only if there is none of that name; of many at once exactly one does.

        Returns:
            Whether it was written; False: there is one already.
        """
        ...

    async def get(self, key: str, limit_bytes: int) -> bytes | None:
        """A small object; None where there is none. More than the limit is not read."""
        ...

    async def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, or replace it."""
        ...

    async def download(self, key: str, path: Path, limit_bytes: int) -> FileRecord | None:
        """Write an object into a local file that must not exist, hash it on the way, and force it to the disk.

        Returns:
            Size and sha256 of what was written; None where there is no such object. No more than the limit, and one
            piece beyond it, is read.
        """
        ...

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins so."""
        ...

    async def folders(self, prefix: str) -> Sequence[str]:
        """The next parts, up to a slash, of the keys that begin so."""
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects; one that is gone is passed over."""
        ...

    async def abort_uploads(self, prefix: str, older_than_s: float) -> int:
        """Give up unfinished uploads below a prefix that were begun longer ago; how many."""
        ...
