"""Attention over packed tokens: every span sees its prefix and itself, and is computed without the rest of the row.

A dense mask over the whole pass would cost L² scores, nearly all of them masked. Here spans of like size form a
`Block`, whose queries and keys are gathered, padded at their end and attended to in one batched call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from art_torch.train.packing import Span

IMPLEMENTATION = "art_packed"
"""Name under which the attention is registered with transformers."""

_FREE_PADDING = 8192
"""Padded scores that cost about as much as one more block (measured on two CPU cores, 9 heads of 64)."""


@dataclass(frozen=True, eq=False)
class Block:
    """S spans of like size, padded at their end to n queries and m keys."""

    query_Sn: Tensor
    """Index of each query in the pass, int64; padding points at token 0, and its result is dropped."""
    key_Sm: Tensor
    """Index of each key in the pass, int64, prefix first; padding is seen by padded queries alone."""
    visible_S1nm: Tensor | None
    """Which keys a query sees; None where no span has a prefix, and a causal mask says it all."""

    def mask(self, window: int | None) -> Tensor | None:
        """The mask, narrowed to the model's sliding window where that is shorter than a span with its prefix."""
        n, m = self.query_Sn.shape[1], self.key_Sm.shape[1]
        if window is None or m <= window:
            return self.visible_S1nm
        visible = self.visible_S1nm
        if visible is None:
            visible = torch.ones(1, 1, n, m, dtype=torch.bool, device=self.key_Sm.device).tril()
        newest_S1n1 = visible.sum(-1, keepdim=True) - 1
        return visible & (torch.arange(m, device=visible.device) > newest_S1n1 - window)


@dataclass(frozen=True, eq=False)
class Layout:
    """How a pass of L tokens falls into blocks."""

    blocks: tuple[Block, ...]
    place_L: Tensor
    """Where each token's result stands in the concatenated results of the blocks, int64."""

    @property
    def repeats_keys(self) -> bool:
        """Whether a prefix is a key of more than one span."""
        return any(block.visible_S1nm is not None for block in self.blocks)

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Layout:
        """Lay out the spans of one pass.

        Args:
            spans: They cover all tokens of the pass.
            device: Where the model is.
        """
        place_L = torch.empty(sum(span.length for span in spans), dtype=torch.int64)
        blocks, size = [], 0
        for members in _blocks(spans):
            block = _block(members, device)
            for index, span in enumerate(members):
                start = size + index * block.query_Sn.shape[1]
                place_L[span.start : span.start + span.length] = torch.arange(start, start + span.length)
            size += block.query_Sn.numel()
            blocks.append(block)
        return cls(tuple(blocks), place_L.to(device))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' `AttentionInterface` calls.

    Args:
        module: The attention layer; not used.
        query: (1, H, L, D), positions already applied.
        key: (1, K, L, D), K dividing H.
        value: (1, K, L, D).
        attention_mask: None; the layout says who sees whom.
        options: ``layout``, a `Layout`, is ours; ``scaling`` and ``sliding_window`` are the model's.

    Returns:
        (1, L, H, D) and no attention weights.
    """
    layout, scaling, window = options["layout"], options.get("scaling"), options.get("sliding_window")
    assert isinstance(layout, Layout)
    assert scaling is None or isinstance(scaling, float)
    assert window is None or isinstance(window, int)
    if not layout.repeats_keys:
        return _attend(query, key, value, layout, scaling, window)[None], None
    # The gathered keys repeat a prefix once per branch: recomputed in the backward pass, they cost time (little) and
    # no memory beyond one layer's.
    result_LHD = checkpoint(
        _attend, query, key, value, layout, scaling, window, use_reentrant=False, preserve_rng_state=False
    )
    return result_LHD[None], None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    results = []
    for block in layout.blocks:
        mask = block.mask(window)
        result_SHnD = scaled_dot_product_attention(
            _gather(query, block.query_Sn),
            _gather(key, block.key_Sm),
            _gather(value, block.key_Sm),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        results.append(result_SHnD.transpose(1, 2).flatten(0, 1))
    return torch.cat(results).index_select(0, layout.place_L)


def _gather(heads_1HLD: Tensor, index_Sn: Tensor) -> Tensor:
    tokens_LHD = heads_1HLD[0].transpose(0, 1)
    gathered = tokens_LHD.index_select(0, index_Sn.flatten())
    return gathered.view(*index_Sn.shape, *gathered.shape[1:]).transpose(1, 2)


def _blocks(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Spans of like size together: a block is closed when one more would pad it by more than a block costs."""
    ordered = sorted(spans, key=lambda span: (span.prefix_length > 0, span.length, span.prefix_length))
    members: list[Span] = []
    for span in ordered:
        if members and not _fits([*members, span]):
            yield members
            members = []
        members.append(span)
    yield members


def _fits(members: Sequence[Span]) -> bool:
    if (members[0].prefix_length > 0) != (members[-1].prefix_length > 0):
        return False
    queries, keys = _size(members)
    wanted = sum(span.length * (span.prefix_length + span.length) for span in members)
    return queries * keys * len(members) - wanted <= max(_FREE_PADDING, wanted // 2)


def _size(members: Sequence[Span]) -> tuple[int, int]:
    return max(s.length for s in members), max(s.prefix_length + s.length for s in members)


def _block(members: Sequence[Span], device: torch.device) -> Block:
    queries, keys = _size(members)
    query_Sn = torch.zeros(len(members), queries, dtype=torch.int64)
    key_Sm = torch.zeros(len(members), keys, dtype=torch.int64)
    for index, span in enumerate(members):
        own = torch.arange(span.start, span.start + span.length)
        prefix = torch.arange(span.prefix_start, span.prefix_start + span.prefix_length)
        query_Sn[index, : span.length] = own
        key_Sm[index, : span.prefix_length + span.length] = torch.cat([prefix, own])
    if members[0].prefix_length == 0:
        return Block(query_Sn.to(device), key_Sm.to(device), None)
    newest_Sn = torch.tensor([[s.prefix_length] for s in members]) + torch.arange(queries)
    visible_S1nm = torch.arange(keys) <= newest_Sn[:, None, :, None]
    return Block(query_Sn.to(device), key_Sm.to(device), visible_S1nm.to(device))


AttentionInterface.register(IMPLEMENTATION, packed_attention)
