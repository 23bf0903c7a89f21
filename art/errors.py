"""The import path that programs use for errors; every error of ours is in `art_core.errors`."""

from art_core.errors import LocalServingUnavailableError

__all__ = [
    "LocalServingUnavailableError",
]
