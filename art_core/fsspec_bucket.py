"""Objects through fsspec: one client for every driver that it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from art_core import file_record
from art_core.bucket import StoredObject
from art_core.errors import ArtError, CapabilityError, ConfigError, StoreError, StoreUnavailableError
from art_core.file_record import FileRecord
from art_core.local_store import in_thread

R = TypeVar("R")

_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
"""What drivers call the time at which an object was written."""
_FINAL = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)
"""What does not pass by itself. Everything else may: fsspec has no word for it that all drivers share."""

_memory = threading.RLock()


class FsspecBucket:
    """A place that fsspec has a driver for; see `art_core.bucket`.

    Args:
        url: With the driver's protocol; its path is the prefix of all keys.
        storage_options: For the driver.

    Raises:
        ConfigError: There is no such driver, it is not installed, or it refuses its options.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url = url
        try:
            made = fsspec.core.url_to_fs(url, use_listings_cache=False, **storage_options)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError(
                f"fsspec can't use {url!r}: {error}; see fsspec's list of drivers and their options"
            ) from error
        self._fs: AbstractFileSystem = made[0]
        self._root = str(made[1]).rstrip("/")
        # fsspec's own in-memory objects share a reading position, so that only one thread may use them
        self._lock = _memory if "memory" in self._fs.protocol else None

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, or replace it."""
        await self._call(f"write {key}", lambda: self._fs.pipe_file(self._path(key), data))

    async def create(self, key: str, data: bytes) -> bool:
        """Write a small object only if there is none of that name.

        Raises:
            CapabilityError: The driver looks and then writes, in two steps.
        """
        if type(self._fs).pipe_file is AbstractFileSystem.pipe_file:
            raise CapabilityError(
                f"fsspec's driver for {self._url!r} can't create an object only if there is none; give "
                f"single_writer=True and train a run on one machine only, or use another store (for files: file://)"
            )

        def create() -> bool:
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in repr(error.__cause__) or "Precondition" in str(error):
                    return False
                raise
            return True

        return await self._call(f"create {key}", create)

    async def get(self, key: str, limit_bytes: int) -> bytes | None:
        """A small object; None where there is none."""

        def get() -> bytes | None:
            try:
                data: bytes = self._fs.cat_file(self._path(key), start=0, end=limit_bytes)
            except FileNotFoundError:
                return None
            return data

        return await self._call(f"read {key}", get)

    async def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, or replace it."""
        await self._call(f"write {key}", lambda: self._fs.put_file(str(path), self._path(key)))

    async def download(self, key: str, path: Path, limit_bytes: int) -> FileRecord | None:
        """Write an object into a local file that must not exist, hash it and force it to the disk."""

        def download() -> FileRecord | None:
            try:
                size = self._fs.info(self._path(key))["size"]
                if size > limit_bytes:
                    raise file_record.corrupt(f"{self._url}: {key}", f"has {size} bytes; allowed: {limit_bytes}")
                self._fs.get_file(self._path(key), str(path))
            except FileNotFoundError:
                return None
            return file_record.force(path)

        return await self._call(f"read {key}", download)

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins so."""

        def find() -> Sequence[StoredObject]:
            folder = prefix.rpartition("/")[0]
            try:
                found = self._fs.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
            listed = [self._object(path, info) for path, info in found.items()]
            return [each for each in listed if each.key.startswith(prefix)]

        return await self._call(f"list {prefix}", find)

    async def folders(self, prefix: str) -> Sequence[str]:
        """The next parts, up to a slash, of the keys that begin so; `prefix` ends with one."""

        def ls() -> Sequence[str]:
            try:
                found = self._fs.ls(self._path(prefix.rstrip("/")), detail=True)
            except FileNotFoundError:
                return []
            names = [each["name"].rstrip("/") for each in found if each["type"] == "directory"]
            return [name.rpartition("/")[2] for name in names if any(files for _, _, files in self._fs.walk(name))]

        return await self._call(f"list {prefix}", ls)

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects; one that is gone is passed over."""

        def delete() -> None:
            for key in keys:
                try:
                    self._fs.rm_file(self._path(key))
                except FileNotFoundError:
                    continue

        await self._call(f"delete {len(keys)} objects", delete)

    async def abort_uploads(self, prefix: str, older_than_s: float) -> int:
        """None are known: fsspec has no call for them. A lifecycle rule of the bucket must remove them."""
        return 0

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _object(self, path: str, info: Mapping[str, Any]) -> StoredObject:
        modified = next((info[name] for name in _MODIFIED if info.get(name) is not None), None)
        if isinstance(modified, str):
            modified = datetime.fromisoformat(modified)
        if isinstance(modified, datetime):
            modified = modified.timestamp()
        if not isinstance(modified, int | float):
            raise StoreError(
                f"fsspec's driver for {self._url!r} does not say when {path} was written; use another store"
            )
        tag = f"{info.get('ETag') or info.get('etag') or ''} {modified} {info['size']}"
        return StoredObject(path[len(self._root) :].lstrip("/"), int(info["size"]), float(modified), tag)

    async def _call(self, what: str, work: Callable[[], R]) -> R:
        def locked() -> R:
            with _errors(f"{what} in {self._url}"):
                if self._lock is None:
                    return work()
                with self._lock:
                    return work()

        return await in_thread(locked)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except ArtError:
        raise
    except _FINAL as error:
        raise StoreError(f"can't {what}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise StoreUnavailableError(f"can't {what}: {type(error).__name__}: {error}") from error
