"""Entry point of the S3 store. Light: the client library is imported when a store is created."""

from __future__ import annotations

from collections.abc import Callable

from art_core.capability import FULL, Capabilities, Capability
from art_core.errors import ConfigError
from art_core.hookspecs import hookimpl
from art_core.object_store import ObjectStore
from art_core.part import StorePart, missing_modules
from art_s3.options import S3StoreOptions


@hookimpl
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register the S3 store."""
    register(
        StorePart(
            name="s3",
            options=S3StoreOptions,
            capabilities=Capabilities({Capability.CREATE_IF_ABSENT: FULL}),
            usable=_usable,
            create=_create,
        )
    )


def _usable() -> str | None:
    return missing_modules("obstore", "botocore", fix="pip install art-s3")


def _create(options: S3StoreOptions) -> ObjectStore:
    from art_s3.bucket import S3Bucket

    bucket, prefix = options.place
    if not bucket:
        raise ConfigError("store 's3' has no bucket; give s3://bucket/prefix, or S3StoreOptions(bucket=…)")
    return ObjectStore(S3Bucket(options), f"s3://{bucket}/{prefix}", options.single_writer)
