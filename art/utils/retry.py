"""The import path that programs use for `retry`."""

from art_core.client.retry import retry

__all__ = ["retry"]
