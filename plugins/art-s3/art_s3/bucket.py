"""A bucket on S3, or on a server that speaks its protocol. Data goes through obstore."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from art_core import disk
from art_core.bucket import StoredObject
from art_core.file_record import FileRecord
from art_core.local_store import in_thread
from art_s3.credential import account
from art_s3.failure import s3_errors
from art_s3.landing import land
from art_s3.options import S3StoreOptions

if TYPE_CHECKING:
    from obstore.store import S3Config

_PIECE_BYTES = 2 << 20
_PARTS = 4
"""A file of so many parts or fewer goes up whole: that is faster than parts are, and takes no more memory."""
_UPLOADS = 8
_DELETES = 1000
_RETRIES = 3


class S3Bucket:
    """See `art_core.bucket`.

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
        with s3_errors(f"use s3://{self._name}"):
            self._store = S3Store(
                self._name,
                config=place,
                credential_provider=self._account,
                unsigned_payload=not plain,  # TLS guards the bytes: to hash them once more for a signature adds nothing
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
        with s3_errors(f"write {self._url(key)}"):
            await obstore.put_async(self._store, self._prefix + key, data, use_multipart=False)

    async def create(self, key: str, data: bytes) -> bool:
        """Write a small object only if there is none of that name: one PUT with ``If-None-Match: *``."""
        with s3_errors(f"create {self._url(key)}"):
            try:
                await obstore.put_async(self._store, self._prefix + key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    async def get(self, key: str, limit_bytes: int) -> bytes | None:
        """A small object; None where there is none."""
        with s3_errors(f"read {self._url(key)}"):
            try:
                found = await obstore.get_async(self._store, self._prefix + key)
            except FileNotFoundError:
                return None
            data = bytearray()
            async for piece in found.stream(_PIECE_BYTES):
                data += piece
                if len(data) > limit_bytes:
                    break
            return bytes(data)

    async def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, or replace it; a large one in parts, several at once."""
        large = (await in_thread(os.stat, path)).st_size > _PARTS * self._options.part_bytes
        with s3_errors(f"write {self._url(key)}"):
            await obstore.put_async(
                self._store,
                self._prefix + key,
                path,
                use_multipart=large,
                chunk_size=self._options.part_bytes,
                max_concurrency=_UPLOADS,
            )

    async def download(self, key: str, path: Path, limit_bytes: int) -> FileRecord | None:
        """Write an object into a local file that must not exist, hash it on the way, and force it to the disk."""
        with s3_errors(f"read {self._url(key)}"):
            try:
                found = await obstore.get_async(self._store, self._prefix + key)
            except FileNotFoundError:
                return None
            with disk.disk_errors(f"write {path}"):
                return await land(found.stream(_PIECE_BYTES), path, limit_bytes)

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        """Every object whose key begins so."""
        with s3_errors(f"list {self._url(prefix)}"):
            try:
                found = await self._list(prefix)
            except BaseError as error:
                if "invalid path" not in str(error):
                    raise
                # somebody has put an object there whose key obstore refuses to read, such as "a//b" or "../b"
                found = await in_thread(self._list_any, prefix)
        return [each for each in found if each.key.startswith(prefix)]

    async def _list(self, prefix: str) -> Sequence[StoredObject]:
        start, folder = len(self._prefix), prefix.rpartition("/")[0]
        return [
            StoredObject(each["path"][start:], each["size"], each["last_modified"].timestamp(), str(each["e_tag"]))
            for each in await obstore.list(self._store, f"{self._prefix}{folder}").collect_async()
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
        with s3_errors(f"list {self._url(prefix)}"):
            found = await obstore.list_with_delimiter_async(self._store, (self._prefix + prefix).rstrip("/"))
        return [each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"]]

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects; one that is gone is passed over."""
        every = [self._prefix + key for key in keys]
        for start in range(0, len(every), _DELETES):
            with s3_errors(f"delete {len(every)} objects below {self._url('')}"), suppress(FileNotFoundError):
                await obstore.delete_async(self._store, every[start : start + _DELETES])

    async def abort_uploads(self, prefix: str, older_than_s: float) -> int:
        """Give up uploads in parts that were begun longer ago, by the server's clock; how many."""
        with s3_errors(f"list unfinished uploads below {self._url(prefix)}"):
            return await in_thread(self._abort_uploads, prefix, older_than_s)

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

    @cached_property
    def _client(self) -> Any:
        return self._account.client()

    def _url(self, key: str) -> str:
        return f"s3://{self._name}/{self._prefix}{key}"
