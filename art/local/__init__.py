"""Training and serving on this machine."""

from art_core.local import LocalBackend

__all__ = ["LocalBackend"]
