"""`LocalBackend`: engine and trainer on this machine."""

from art_core.local.backend import LocalBackend
from art_core.local.option import LocalBackendArgs

__all__ = ["LocalBackend", "LocalBackendArgs"]
