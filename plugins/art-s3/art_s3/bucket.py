"""A bucket on S3, or on a server that speaks its protocol. Most goes through obstore, files come through botocore."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from art_core import disk, file_record
from art_core.bucket import StoredObject
from art_core.daemon import in_daemon, until
from art_core.file_record import FileRecord
from art_s3 import body
from art_s3.credential import account
from art_s3.failure import s3_errors
from art_s3.options import S3StoreOptions

if TYPE_CHECKING:
    from obstore.store import S3Config

R = TypeVar("R")

_PIECE_BYTES = 256 << 10
_PARTS = 8
"""A file of so many parts or fewer goes up whole: that is faster than parts are, and takes no more memory."""
_UPLOADS = 8
_DELETES = 1000
_LISTED = 1000
_RETRIES = 3


class S3Bucket:
    """See `art_core.bucket`.

    obstore's blocking calls are used, each in a thread of ours. Its asynchronous ones end in threads of its own that
    still want the interpreter when a program ends; on Python 3.11 that aborts the program.

    Args:
        options: Where, and how to reach it.

    Raises:
        ConfigError: The AWS configuration can't be used.
    """

    def __init__(self, options: S3StoreOptions) -> None:
        self._options = options
        self._name, self._prefix = options.place
        self._account = account(options)
        plain = (self._account.endpoint_url or "").startswith("http://")
        place: S3Config = {
            "region": self._account.region,
            "virtual_hosted_style_request": not self._account.path_style,
        }
        if self._account.endpoint_url is not None:  # obstore takes no None here
            place["endpoint"] = self._account.endpoint_url
        if plain:  # nothing guards the bytes, so they are signed by their sha256: the server checks them by the same
            place["checksum_algorithm"] = "sha256"
        else:  # TLS guards them: to hash them once more for a signature adds nothing
            place["unsigned_payload"] = True
        with s3_errors(f"use s3://{self._name}"):
            self._client = self._account.client(_RETRIES)
            self._store = S3Store(
                self._name,
                config=place,
                credential_provider=self._account,
                client_options={
                    "allow_http": plain,
                    "timeout": timedelta(days=1),  # of a whole transfer, however slow: what counts is that it goes on
                    "connect_timeout": timedelta(seconds=options.timeout_s),
                    "read_timeout": timedelta(seconds=options.timeout_s),
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=options.timeout_s)},
            )

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object, or replace it."""
        await self._call(f"write {self._url(key)}", lambda _: self._put(key, data))

    async def create(self, key: str, data: bytes) -> bool:
        """Write a small object only if there is none of that name: one PUT with ``If-None-Match: *``."""

        def create(_: threading.Event) -> bool:
            try:
                self._put(key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return await self._call(f"create {self._url(key)}", create)

    async def get(self, key: str, limit_bytes: int) -> bytes | None:
        """A small object; None where there is none."""

        def get(given_up: threading.Event) -> bytes | None:
            try:
                found = obstore.get(self._store, self._prefix + key)
            except FileNotFoundError:
                return None
            data = bytearray()
            for piece in until(given_up, found.stream(_PIECE_BYTES)):
                data += memoryview(piece)
                if len(data) > limit_bytes:
                    break
            return bytes(data)

        return await self._call(f"read {self._url(key)}", get)

    async def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, or replace it; a large one in parts, several at once."""

        def pieces(given_up: threading.Event) -> Iterator[bytes]:
            with file_record.open_regular(path) as (file, _):
                yield from until(given_up, iter(lambda: file.read(_PIECE_BYTES), b""))

        def upload(given_up: threading.Event) -> None:
            part = self._options.part_bytes
            obstore.put(
                self._store,
                self._prefix + key,
                pieces(given_up),
                use_multipart=path.stat().st_size > _PARTS * part,
                chunk_size=part,
                max_concurrency=_UPLOADS,
            )

        await self._call(f"write {self._url(key)}", upload)

    async def download(self, key: str, path: Path, limit_bytes: int) -> FileRecord | None:
        """Write an object into a local file that must not exist, hash it meanwhile, and force it to the disk."""

        def download(given_up: threading.Event) -> FileRecord | None:
            pieces = body.pieces(self._client, self._name, self._prefix + key)
            if pieces is None:
                return None
            with disk.disk_errors(f"write {path}"):
                return file_record.receive(until(given_up, pieces), path, limit_bytes)

        return await self._call(f"read {self._url(key)}", download)

    def _put(self, key: str, data: bytes, mode: Literal["create", "overwrite"] = "overwrite") -> None:
        obstore.put(self._store, self._prefix + key, data, mode=mode, use_multipart=False)

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins so."""

        def find(given_up: threading.Event) -> Sequence[StoredObject]:
            try:
                found = self._list(prefix, given_up)
            except BaseError as error:
                if "invalid path" not in str(error):
                    raise
                # somebody has put an object there whose key obstore refuses to read, such as "a//b" or "../b"
                found = self._list_any(prefix)
            return [each for each in found if each.key.startswith(prefix)]

        return await self._call(f"list {self._url(prefix)}", find)

    def _list(self, prefix: str, given_up: threading.Event) -> Sequence[StoredObject]:
        start, folder = len(self._prefix), prefix.rpartition("/")[0]
        return [
            StoredObject(each["path"][start:], each["size"], each["last_modified"].timestamp(), str(each["e_tag"]))
            for page in until(given_up, obstore.list(self._store, f"{self._prefix}{folder}", chunk_size=_LISTED))
            for each in page
        ]

    def _list_any(self, prefix: str) -> Sequence[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix + prefix)
        start = len(self._prefix)
        return [
            StoredObject(each["Key"][start:], each["Size"], each["LastModified"].timestamp(), each["ETag"])
            for page in pages
            for each in page.get("Contents", [])
        ]

    async def folders(self, prefix: str) -> Sequence[str]:
        """The next parts, up to a slash, of the keys that begin so."""

        def find(_: threading.Event) -> Sequence[str]:
            found = obstore.list_with_delimiter(self._store, (self._prefix + prefix).rstrip("/"))
            return [each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"]]

        return await self._call(f"list {self._url(prefix)}", find)

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects; one that is gone is passed over."""
        every = [self._prefix + key for key in keys]

        def delete(given_up: threading.Event) -> None:
            for start in until(given_up, range(0, len(every), _DELETES)):
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, every[start : start + _DELETES])

        await self._call(f"delete {len(every)} objects below {self._url('')}", delete)

    async def abort_uploads(self, prefix: str, older_than_s: float) -> int:
        """Give up uploads in parts that were begun longer ago, by the server's clock; how many."""
        what = f"list unfinished uploads below {self._url(prefix)}"
        return await self._call(what, lambda _: self._abort_uploads(prefix, older_than_s))

    def _abort_uploads(self, prefix: str, older_than_s: float) -> int:
        aborted = 0
        for page in self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._name, Prefix=self._prefix + prefix
        ):
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", []):
                begun = upload["Initiated"].replace(microsecond=0)  # the header's clock tells whole seconds
                if (now - begun).total_seconds() >= older_than_s:
                    where = {"Bucket": self._name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._client.abort_multipart_upload(**where)
                    aborted += 1
        return aborted

    def _url(self, key: str) -> str:
        return f"s3://{self._name}/{self._prefix}{key}"

    async def _call(self, what: str, work: Callable[[threading.Event], R]) -> R:
        def guarded(given_up: threading.Event) -> R:
            with s3_errors(what):
                return work(given_up)

        return await in_daemon(guarded)
