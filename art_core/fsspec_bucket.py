"""Objects through fsspec: one client for every driver that it has.

What a listing costs is the driver's to say. Of a real bucket (gs, az, oss …) it is one, in pages. Where there are
directories (sftp, smb, webhdfs, ftp …) it is one request for each of them, two a step, one after the other. In memory
it is one look at each object that there is.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from art_core import disk, file_record
from art_core.bucket import StoredObject
from art_core.daemon import in_daemon
from art_core.errors import ArtError, CapabilityError, ConfigError, StoreError, StoreUnavailableError
from art_core.file_record import FileRecord

R = TypeVar("R")

_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
"""What drivers call the time at which an object was written."""
_FINAL = (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)
"""What does not pass by itself. Everything else may: fsspec has no word for it that all drivers share."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says, this machine's above all: a driver writes what it downloads by itself."""

_memory = threading.RLock()
"""fsspec's own in-memory objects share a reading position, so that only one thread may use them."""


def open_bucket(url: str, storage_options: Mapping[str, Any]) -> FsspecBucket:
    """The place that a URL names.

    Raises:
        ConfigError: There is no such driver, it is not installed, or it refuses its options.
        StoreError: The driver connects at once, and can't.
    """
    kind = MemoryBucket if fsspec.core.split_protocol(url)[0] == MemoryFileSystem.protocol else FsspecBucket
    return kind(url, storage_options)


def shown(url: str) -> str:
    """A URL as messages may show it: without the password that may stand in it."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", url)


class FsspecBucket:
    """A place that fsspec has a driver for; see `art_core.bucket`.

    Args:
        url: With the driver's protocol; its path is the prefix of all keys.
        storage_options: For the driver.

    Raises:
        ConfigError: There is no such driver, it is not installed, or it refuses its options.
        StoreError: The driver connects at once, and can't.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url = shown(url)
        with _errors(f"use {self._url}"):  # some drivers connect at once
            try:
                made = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **storage_options)
            except (ImportError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"fsspec can't use {self._url!r}: {error}; see fsspec's list of drivers and their options"
                ) from error
        self._fs: AbstractFileSystem = made[0]
        self._root = str(made[1]).rstrip("/")
        # a driver that is not made for calls at once may have one connection, on which answers would get mixed up
        self._lock = None if self._fs.async_impl else threading.RLock()

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, or replace it."""

        def put() -> None:
            self._make_directory(key)
            self._fs.pipe_file(self._path(key), data)

        await self._call(f"write {key}", put)

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

        def upload() -> None:
            self._make_directory(key)
            self._fs.put_file(str(path), self._path(key))

        await self._call(f"write {key}", upload)

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

    def _make_directory(self, key: str) -> None:
        """Where a driver has directories, make that of an object; real buckets have none, and are asynchronous."""
        if not self._fs.async_impl:
            self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)

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
        def locked(_: threading.Event) -> R:
            with _errors(f"{what} in {self._url}"):
                if self._lock is None:
                    return work()
                with self._lock:
                    return work()

        return await in_daemon(locked)


class MemoryBucket(FsspecBucket):
    """fsspec's own memory, which all of a process shares.

    It is one dictionary, and is read as such: fsspec's calls look at every object and directory for each directory, so
    that many steps would take the square of their number.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(url, storage_options)
        self._lock = _memory

    async def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, or replace it."""
        await self._call(f"write {key}", lambda: self._fs.pipe_file(self._path(key), path.read_bytes()))

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins so."""

        def find() -> Sequence[StoredObject]:
            found = self._files(prefix).items()
            return [self._object(path, {"size": file.size, "modified": file.modified}) for path, file in found]

        return await self._call(f"list {prefix}", find)

    async def folders(self, prefix: str) -> Sequence[str]:
        """The next parts, up to a slash, of the keys that begin so."""

        def folders() -> Sequence[str]:
            inside = [path[len(f"{self._root}/{prefix}") :] for path in self._files(prefix)]
            return sorted({path.partition("/")[0] for path in inside if "/" in path})

        return await self._call(f"list {prefix}", folders)

    def _files(self, prefix: str) -> Mapping[str, MemoryFile]:
        start, every = f"{self._root}/{prefix}", tuple(self._fs.store.items())  # others may write meanwhile
        return {path: file for path, file in every if path.startswith(start)}

    def _make_directory(self, key: str) -> None:
        """There are none."""


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except ArtError:
        raise
    except _FINAL as error:
        raise StoreError(f"can't {what}: {type(error).__name__}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StoreError(f"can't {what}: {error}; {disk.advice(error)} and try again") from error
        raise StoreUnavailableError(f"can't {what}: {type(error).__name__}: {error}") from error
