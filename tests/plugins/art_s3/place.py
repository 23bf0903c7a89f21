"""A bucket, and everything in it past the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions

from art_core.object_store import ObjectStore


class S3Objects(MutableMapping[str, bytes]):
    """The objects of a bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def __getitem__(self, key: str) -> bytes:
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey as error:
            raise KeyError(key) from error
        return body

    def __setitem__(self, key: str, value: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=value)

    def __delitem__(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=key)

    def __iter__(self) -> Iterator[str]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
            yield from (each["Key"] for each in page.get("Contents", []))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Place:
    """A bucket of a server."""

    options: S3StoreOptions
    client: Any
    objects: S3Objects

    @classmethod
    def make(cls, client: Any, options: S3StoreOptions, prefix: str = "some/prefix") -> Self:
        """Make a new bucket on the options' server."""
        bucket = f"art-{uuid.uuid4().hex[:16]}"
        client.create_bucket(Bucket=bucket)
        return cls(options.model_copy(update={"bucket": bucket, "prefix": prefix}), client, S3Objects(client, bucket))

    @property
    def bucket(self) -> str:
        """Its name."""
        return self.options.place[0]

    def store(self, **changes: Any) -> ObjectStore:
        """A store in it."""
        options = self.options.model_copy(update=changes)
        return ObjectStore(S3Bucket(options), f"s3://{self.bucket}/", options.single_writer)
