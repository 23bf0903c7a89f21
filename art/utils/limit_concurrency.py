"""The import path that programs use for `limit_concurrency`."""

from art_core.client.concurrency import limit_concurrency

__all__ = ["limit_concurrency"]
