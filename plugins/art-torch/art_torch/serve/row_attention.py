"""Attention over the row cache, as transformers calls it: writes the new keys and values, then attends.

Rows that compute one token (decoding) take one call together; a row that computes several (prefill) takes one of its
own. Registered with transformers under `ROW_ATTENTION`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from art_torch.serve.kv_cache import KVCache

ROW_ATTENTION = "art_rows"


@dataclass(frozen=True)
class Chunk:
    """A row that computes several tokens: those at [first, first + count) of the flat tokens."""

    row: int
    first: int
    count: int
    start: int
    """Position of its first token in its sequence."""


@dataclass
class RowPlan:
    """Where each flat token of a forward pass belongs."""

    cache: KVCache
    write_N: torch.Tensor
    """Flat cache index (row * capacity + position) of every token."""
    query_R: torch.Tensor | None
    """Flat token that is the last one of each row; None: row r's is token r, and no row has another."""
    length_R: torch.Tensor
    """Positions that each row's last token may see."""
    longest: int
    """The greatest of them."""
    same_length: bool
    """Whether they are all equal."""
    decodes: bool
    """Whether any row computes one token only."""
    chunks: tuple[Chunk, ...]
    masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)
    """Additive masks made so far, by (chunk number or -1, sliding window)."""


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row.

    Args:
        module: The attention module; gives the layer's index.
        query: (1, heads, N, head size), N flat tokens of all rows.
        key: (1, key heads, N, head size).
        value: (1, key heads, N, value size).
        attention_mask: None; the plan says what may be seen.
        given: ``plan``, where each token belongs; ``scaling``, the factor on the scores; ``sliding_window``, how many
            positions a query looks back on at most (absent or None: all).

    Returns:
        (1, N, heads, value size), and no weights.
    """
    plan: RowPlan = given["plan"]
    scaling: float = given["scaling"]
    sliding_window: int | None = given.get("sliding_window")
    layer: int = module.layer_idx  # type: ignore[assignment]
    flat_keys, flat_values = plan.cache.flat_layer(layer)
    flat_keys.index_copy_(0, plan.write_N, key[0].transpose(0, 1))
    flat_values.index_copy_(0, plan.write_N, value[0].transpose(0, 1))
    query_NHD = query[0].transpose(0, 1)
    if plan.query_R is None:
        return _decode(plan, layer, query_NHD, scaling, sliding_window)[None], None
    out = query.new_empty(query_NHD.shape[0], query.shape[1], value.shape[-1])
    if plan.decodes:
        # Rows with a chunk are asked too, for their last token: leaving them out would copy the others' keys.
        out[plan.query_R] = _decode(plan, layer, query_NHD[plan.query_R], scaling, sliding_window)
    for number, chunk in enumerate(plan.chunks):
        out[chunk.first : chunk.first + chunk.count] = _prefill(plan, layer, query, scaling, (number, sliding_window))
    return out[None], None


def _decode(plan: RowPlan, layer: int, query_RHD: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
    """One query per row, all rows at once. Returns (R, heads, value size)."""
    rows, heads, size = query_RHD.shape
    keys, values = (tensor[:rows, : plan.longest].transpose(1, 2) for tensor in plan.cache.layer(layer))
    # The query heads that share a key head become extra queries of it, so no key is copied.
    grouped = query_RHD.reshape(rows, keys.shape[1], heads // keys.shape[1], size)
    mask = _decode_mask(plan, window, query_RHD)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, values.shape[-1])


def _prefill(
    plan: RowPlan, layer: int, query: torch.Tensor, scaling: float, key: tuple[int, int | None]
) -> torch.Tensor:
    """A chunk of one row. Returns (count, heads, value size)."""
    chunk = plan.chunks[key[0]]
    stop = chunk.start + chunk.count
    keys, values = (tensor[chunk.row : chunk.row + 1, :stop].transpose(1, 2) for tensor in plan.cache.layer(layer))
    queries = query[:, :, chunk.first : chunk.first + chunk.count]
    whole = chunk.start == 0 and (key[1] is None or stop <= key[1])
    mask = None if whole else _chunk_mask(plan, key, query)
    out = scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=whole, scale=scaling, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _decode_mask(plan: RowPlan, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    if plan.same_length and (window is None or plan.longest <= window):
        return None
    if (-1, window) not in plan.masks:
        position_L = torch.arange(plan.longest, device=like.device)
        last_R1 = plan.length_R[:, None]
        hidden_RL = position_L >= last_R1
        if window is not None:
            hidden_RL |= position_L < last_R1 - window
        plan.masks[-1, window] = _additive(hidden_RL, like)[:, None, None]
    return plan.masks[-1, window]


def _chunk_mask(plan: RowPlan, key: tuple[int, int | None], like: torch.Tensor) -> torch.Tensor | None:
    if key not in plan.masks:
        chunk, window = plan.chunks[key[0]], key[1]
        position_L = torch.arange(chunk.start + chunk.count, device=like.device)
        own_C1 = position_L[chunk.start :, None]
        hidden_CL = position_L > own_C1
        if window is not None:
            hidden_CL |= position_L <= own_C1 - window
        plan.masks[key] = _additive(hidden_CL, like)[None, None]
    return plan.masks[key]


def _additive(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


AttentionInterface.register(ROW_ATTENTION, row_attention)
