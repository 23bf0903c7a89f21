"""Keys and values of recently finished sequences, to be taken up by later requests that begin with the same tokens.

Keyed by adapter load, not by name: a name that was loaded again never meets what its predecessor computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_torch.serve.kv_cache import Prefix


@dataclass(frozen=True, eq=False)
class Entry:
    """One remembered prefix."""

    load_id: int
    """The adapter load that computed it."""
    tokens: NDArray[np.int32]
    prefix: Prefix


class PrefixCache:
    """The most recently used prefixes, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: list[Entry] = []
        """Least recently used first."""

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(entry.prefix.size_bytes for entry in self._entries)

    def find(self, load_id: int, tokens: NDArray[np.int32]) -> tuple[Entry | None, int]:
        """The entry that shares most tokens with the given ones, and how many."""
        best, most = None, 0
        for entry in self._entries:
            if entry.load_id == load_id and (shared := common_prefix(entry.tokens, tokens)) > most:
                best, most = entry, shared
        if best is not None:
            self._entries.remove(best)
            self._entries.append(best)
        return best, most

    def add(self, load_id: int, tokens: NDArray[np.int32], copy: Callable[[], Prefix]) -> None:
        """Remember a prefix.

        Args:
            load_id: The adapter load that computed it.
            tokens: Its token ids.
            copy: Makes the copy; not called where an entry covers these tokens already.
        """
        held, shared = self.find(load_id, tokens)
        if held is not None and shared == len(tokens):
            return
        if held is not None and shared == len(held.tokens):
            self._entries.remove(held)
        self._entries.append(Entry(load_id, tokens.copy(), copy()))
        while self._entries and self.size_bytes > self._budget_bytes:
            self._entries.pop(0)

    def forget(self, load_id: int) -> None:
        """Drop everything that an adapter load computed."""
        self._entries = [entry for entry in self._entries if entry.load_id != load_id]


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(a), len(b))
    if length == 0 or a[0] != b[0]:
        return 0
    differs = a[:length] != b[:length]
    first = int(differs.argmax())
    return first if differs[first] else length
