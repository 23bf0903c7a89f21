"""Keys and values of the running sequences: one row each, the rows in use always the first ones.

Per layer two tensors [rows, capacity, heads, head size], so that decoding every row is one attention call. Rows and
capacity grow by doubling, within a budget of bytes.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

_FIRST_ROWS = 4
_FIRST_CAPACITY_TOKENS = 128


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Prefix:
    """A copy of a row's first tokens: per layer keys and values (T, heads, head size)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @cached_property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers)


class KVCache:
    """Rows of keys and values for every layer."""

    def __init__(
        self, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device, budget_bytes: int
    ) -> None:
        self.rows = 0
        self.capacity = 0
        self._shapes = shapes
        self._dtype, self._device = dtype, device
        self._token_bytes = dtype.itemsize * sum(s.heads * (s.key_dim + s.value_dim) for s in shapes)
        self._budget_bytes = budget_bytes
        self._layers = [self._empty(shape, 0, 0) for shape in shapes]

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether that many rows of that length stay within the budget; one row always does."""
        size = rows * _grown(max(tokens, self.capacity), _FIRST_CAPACITY_TOKENS) * self._token_bytes
        return rows <= 1 or size <= self._budget_bytes

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for that many rows of that length.

        Args:
            rows: At least the rows in use, whose content is kept.
            tokens: Longest row.
        """
        if rows <= self.rows and tokens <= self.capacity:
            return
        self.capacity = _grown(max(tokens, self.capacity), _FIRST_CAPACITY_TOKENS)
        spare = _grown(rows, _FIRST_ROWS)
        self.rows = spare if self.fits(spare, self.capacity) else rows
        for index, shape in enumerate(self._shapes):
            grown = self._empty(shape, self.rows, self.capacity)
            for new, old in zip(grown, self._layers[index], strict=True):
                kept = old[: self.rows]
                new[: kept.shape[0], : kept.shape[1]] = kept
            self._layers[index] = grown

    def flat_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer as (rows * capacity, heads, head size): the token at row r, position p is
        at r * capacity + p.
        """  # noqa: D205
        keys, values = self._layers[layer]
        return keys.flatten(0, 1), values.flatten(0, 1)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, (rows, capacity, heads, head size)."""
        return self._layers[layer]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a row's first tokens over another row's."""
        for keys, values in self._layers:
            keys[target, :tokens] = keys[source, :tokens]
            values[target, :tokens] = values[source, :tokens]

    def extract(self, row: int, tokens: int) -> Prefix:
        """Copy a row's first tokens out."""
        return Prefix(tuple((k[row, :tokens].clone(), v[row, :tokens].clone()) for k, v in self._layers))

    def insert(self, row: int, prefix: Prefix, tokens: int) -> None:
        """Copy a prefix's first tokens into a row."""
        for (keys, values), (k, v) in zip(self._layers, prefix.layers, strict=True):
            keys[row, :tokens] = k[:tokens]
            values[row, :tokens] = v[:tokens]

    def _empty(self, shape: LayerShape, rows: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = (shape.key_dim, shape.value_dim)
        keys, values = (_zeros((rows, capacity, shape.heads, size), self._dtype, self._device) for size in sizes)
        return keys, values


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros: attention reads entries that were never written, under a mask that a stray NaN would survive.

    On a CPU the pages take up memory when they are first written, so short rows of a long capacity cost little.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size_bytes == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype).view(
        shape
    )


def _grown(needed: int, first: int) -> int:
    size = first
    while size < needed:
        size *= 2
    return size


def default_budget_bytes(device: torch.device) -> int:
    """Memory for keys and values: half of what a GPU has left, an eighth of a machine's memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
