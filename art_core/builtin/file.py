"""The `file` store: copies on another disk or a mounted share. By default there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import field_validator

from art_core.capability import FULL, Capabilities, Capability
from art_core.config import PartOptions
from art_core.file_store import FileStore
from art_core.hookspecs import hookimpl
from art_core.part import StorePart


class FileStoreOptions(PartOptions):
    """Where the file store copies to."""

    part: ClassVar[str] = "file"
    url: str | None = None
    """A directory, or ``file:///…``, on another disk or a mounted share. None: nowhere, the run's own directory is the
    only place."""

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str | None) -> str | None:
        if url is not None and not _path(url).is_absolute():
            raise ValueError("give an absolute path, or file:///path")
        return url


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the file store."""
    register(
        StorePart(
            name="file",
            options=FileStoreOptions,
            capabilities=Capabilities({Capability.CREATE_IF_ABSENT: FULL}),
            create=_create,
        )
    )


def _create(options: FileStoreOptions) -> FileStore | None:
    return None if options.url is None else FileStore(_path(options.url))


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url).expanduser()
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url!r} names no directory of this machine; allowed: file:///path")
    return Path(unquote(parts.path))
