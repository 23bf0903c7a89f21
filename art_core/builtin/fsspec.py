"""The `fsspec` store: any place that fsspec has a driver for, by its URL. What each one guarantees differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from art_core.config import PartOptions
from art_core.errors import ConfigError
from art_core.hookspecs import hookimpl
from art_core.object_store import ObjectStore
from art_core.part import StorePart, missing_modules


class FsspecStoreOptions(PartOptions):
    """Where the fsspec store copies to."""

    part: ClassVar[str] = "fsspec"
    url: str | None = None
    """For example ``gs://bucket/prefix`` or ``az://container/prefix``; the driver (gcsfs, adlfs) must be installed.
    What is in ``memory://`` goes with the process: it is for tests."""
    storage_options: dict[str, Any] | None = None
    """What the driver is made with; see its own documentation. Most find credentials by themselves."""
    single_writer: bool = False
    """For a driver that can't create-if-absent: writers take turns by a lease. A run then belongs on one machine."""


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the fsspec store. It declares nothing: what holds is for the driver and the server to say."""
    register(StorePart(name="fsspec", options=FsspecStoreOptions, usable=_usable, create=_create))


def _usable() -> str | None:
    return missing_modules("fsspec", fix="pip install 'art-core[fsspec]'")


def _create(options: FsspecStoreOptions) -> ObjectStore:
    from art_core.fsspec_bucket import open_bucket, shown

    if options.url is None:
        raise ConfigError("store 'fsspec' has no URL; give one as the store, e.g. gs://bucket/prefix")
    bucket = open_bucket(options.url, options.storage_options or {})
    return ObjectStore(bucket, shown(options.url), options.single_writer)
