"""Options of the S3 store. Light: imports no client library."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from art_core.config import PartOptions


class S3StoreOptions(PartOptions):
    """Where the S3 store copies to. Credentials come by the usual AWS chain: variables, profiles, roles."""

    part: ClassVar[str] = "s3"
    url: str | None = None
    """``s3://bucket/prefix``: bucket and prefix in one."""
    bucket: str | None = None
    """The bucket; it must exist. Not beside `url`."""
    prefix: str = ""
    """What all keys begin with, before ``<project>/models/<run>/``. Not beside `url`."""
    endpoint_url: str | None = None
    """Another server than Amazon's, e.g. ``http://127.0.0.1:9000``. None: ``AWS_ENDPOINT_URL_S3``, else Amazon's."""
    region: str | None = None
    """None: what the AWS configuration says, else ``us-east-1``."""
    path_style: bool | None = None
    """Put the bucket into the path and not into the host's name. None: with an endpoint of one's own, yes."""
    profile: str | None = None
    """A profile of the AWS configuration; None: the one that it names."""
    single_writer: bool = False
    """For a server that can't create-if-absent: writers take turns by a lease. A run then belongs on one machine."""
    timeout_s: float = Field(default=60.0, gt=0)
    """A request without any progress for so long is given up, and tried again later."""
    part_bytes: int = Field(default=8 << 20, ge=5 << 20, le=1 << 30)
    """Files that are more than eight times as large are uploaded in parts of this size, several at once."""

    @model_validator(mode="after")
    def _one_place(self) -> S3StoreOptions:
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
                raise ValueError(f"url is {self.url!r}; allowed: s3://bucket or s3://bucket/prefix")
            if self.bucket or self.prefix:
                raise ValueError("give either url, or bucket and prefix")
        return self

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and prefix; the prefix is empty or ends with a slash. An empty bucket: none was given."""
        parts = urlsplit(self.url or "")
        bucket, prefix = (parts.netloc, unquote(parts.path)) if self.url else (self.bucket or "", self.prefix)
        prefix = prefix.strip("/")
        return bucket, f"{prefix}/" if prefix else ""
