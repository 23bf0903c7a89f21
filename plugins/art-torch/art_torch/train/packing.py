"""Which tokens go through the model, in how many passes, and what each of them may see.

Sequences of one group usually begin with the same prompt. A pass holds that prefix once, and after it what is each
sequence's own: a *branch*. Positions continue from the prefix, and a branch sees its prefix and itself, nothing else
(see `packed_attention`). Nothing is padded. Tokens behind a sequence's last scored one are left out: no loss depends
on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """Consecutive packed tokens that attend causally to themselves, and fully to a prefix span where they have one."""

    start: int
    """Index of its first token in the pass."""
    length: int
    prefix_start: int = 0
    """Index of its prefix's first token in the pass."""
    prefix_length: int = 0
    """0: it stands alone."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass: L packed tokens, of which N positions predict a scored token."""

    tokens_L: NDArray[np.int64]
    positions_L: NDArray[np.int64]
    """Position of each token in its own sequence, counted from 0."""
    spans: tuple[Span, ...]
    """Together they cover the L tokens, without overlap."""
    predicting_N: NDArray[np.int64]
    """Index into the L tokens: where the model predicts the scored token; repeats where branches fork."""
    rows_N: NDArray[np.int64]
    """The scored token's row in the batch."""
    columns_N: NDArray[np.int64]
    """The scored token's column in the batch."""


def pack(
    tokens_BT: NDArray[np.int32], scored_BT: NDArray[np.bool_], group_ids_B: NDArray[np.int32], limit_tokens: int
) -> tuple[Pass, ...]:
    """Plan the forward passes that give the logprob of every scored token.

    Rows are taken group by group in their order; a pass is closed when the next row does not fit. A group that is
    split over two passes has its prefix computed in both.

    Args:
        tokens_BT: Token ids, int32.
        scored_BT: Which of them are wanted; rows without any need no forward and get none. Never the first column.
        group_ids_B: Rows of one group may share a prefix.
        limit_tokens: Most packed tokens in a pass; a longer row has a pass of its own.

    Returns:
        The passes, in order; every scored token is in exactly one of them.
    """
    rows_by_group: dict[int, list[int]] = {}
    for row in np.flatnonzero(scored_BT.any(axis=1)).tolist():
        rows_by_group.setdefault(int(group_ids_B[row]), []).append(row)
    passes: list[Pass] = []
    draft = _Draft(scored_BT)
    for rows in rows_by_group.values():
        inputs = [tokens_BT[row, : input_length(scored_BT[row])] for row in rows]
        prefix_T = inputs[0][: common_prefix(inputs)]
        shared = None
        for row, input_T in zip(rows, inputs, strict=True):
            own_tokens = len(input_T) - len(prefix_T)
            needed_tokens = own_tokens + (len(prefix_T) if shared is None else 0)
            if draft.size and draft.size + needed_tokens > limit_tokens:
                passes.append(draft.finish())
                draft, shared = _Draft(scored_BT), None
            if shared is None:
                shared = draft.add(prefix_T, Span(0, 0))
            draft.add_row(row, draft.add(input_T[len(prefix_T) :], shared), shared)
    return (*passes, draft.finish()) if draft.size else tuple(passes)


def unpacked_tokens(scored_BT: NDArray[np.bool_]) -> int:
    """Tokens that the same passes would hold if no prefix were shared."""
    return sum(input_length(scored_T) for scored_T in scored_BT[scored_BT.any(axis=1)])


def input_length(scored_T: NDArray[np.bool_]) -> int:
    """Tokens of a row that its scored tokens depend on: all before the last scored one."""
    return int(np.flatnonzero(scored_T)[-1])


def common_prefix(rows: Sequence[NDArray[np.int32]]) -> int:
    """Tokens that all rows begin with; 0 for a single row, which has nobody to share with."""
    if len(rows) == 1:
        return 0
    length = min(len(row) for row in rows)
    same_T = np.logical_and.reduce([row[:length] == rows[0][:length] for row in rows])
    return length if same_T.all() else int(same_T.argmin())


class _Draft:
    """A pass that still takes rows."""

    def __init__(self, scored_BT: NDArray[np.bool_]) -> None:
        self.size = 0
        self._scored_BT = scored_BT
        self._tokens: list[NDArray[np.int64]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._spans: list[Span] = []
        self._scored: list[NDArray[np.int64]] = []

    def add(self, tokens_T: NDArray[np.int32], prefix: Span) -> Span:
        span = Span(self.size, len(tokens_T), prefix.start, prefix.length)
        if span.length:
            self._tokens.append(tokens_T.astype(np.int64))
            self._positions.append(np.arange(prefix.length, prefix.length + span.length))
            self._spans.append(span)
            self.size += span.length
        return span

    def add_row(self, row: int, own: Span, prefix: Span) -> None:
        columns_N = np.flatnonzero(self._scored_BT[row])
        before_N = columns_N - 1
        in_prefix_N = before_N < prefix.length
        predicting_N = np.where(in_prefix_N, prefix.start + before_N, own.start + before_N - prefix.length)
        self._scored.append(np.stack([predicting_N, np.full_like(columns_N, row), columns_N]))

    def finish(self) -> Pass:
        predicting_N, rows_N, columns_N = np.concatenate(self._scored, axis=1)
        tokens_L, positions_L = np.concatenate(self._tokens), np.concatenate(self._positions)
        return Pass(tokens_L, positions_L, tuple(self._spans), predicting_N, rows_N, columns_N)
