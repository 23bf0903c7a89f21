"""The plan of the passes: nothing lost, nothing twice, nothing over budget; and the blocks of its attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from art_torch.train.packed_attention import Block, Layout
from art_torch.train.packing import Pass, Span, common_prefix, pack, unpacked_tokens

from tests.plugins.art_torch.trainer_case import PROMPT_TOKENS, make_batch


def history(packed: Pass, index: int) -> list[int]:
    """Tokens that the packed token may see, itself last, read off the spans alone."""
    span = next(s for s in packed.spans if s.start <= index < s.start + s.length)
    prefix = packed.tokens_L[span.prefix_start : span.prefix_start + span.prefix_length]
    return [*prefix.tolist(), *packed.tokens_L[span.start : index + 1].tolist()]


@pytest.mark.parametrize("limit", [1, 20, 45, 100, 10_000])
def test_every_scored_token_is_predicted_once_from_its_own_history(limit: int) -> None:
    batch = make_batch(seed=limit)
    seen = []
    for packed in pack(batch.tokens_BT, batch.loss_mask_BT, batch.group_ids_B, limit):
        for index, row, column in zip(packed.predicting_N, packed.rows_N, packed.columns_N, strict=True):
            assert history(packed, int(index)) == batch.tokens_BT[row, :column].tolist()
            assert packed.positions_L[index] == column - 1
            seen.append((int(row), int(column)))
    assert sorted(seen) == [tuple(place) for place in np.argwhere(batch.loss_mask_BT).tolist()]


@pytest.mark.parametrize("limit", [1, 20, 45, 100, 10_000])
def test_a_pass_keeps_the_budget_unless_it_is_one_long_row(limit: int) -> None:
    batch = make_batch()
    for packed in pack(batch.tokens_BT, batch.loss_mask_BT, batch.group_ids_B, limit):
        assert len(packed.tokens_L) <= limit or len(set(packed.rows_N.tolist())) == 1
        assert sum(span.length for span in packed.spans) == len(packed.tokens_L) == len(packed.positions_L)


def test_the_prefix_is_computed_once_and_what_follows_the_last_scored_token_never() -> None:
    batch = make_batch(groups=2, rows_per_group=4)
    (packed,) = pack(batch.tokens_BT, batch.loss_mask_BT, batch.group_ids_B, 10_000)
    prefix_tokens = PROMPT_TOKENS + 1  # the first sampled token is the same in the whole group
    own_tokens = int((batch.lengths_B - 1 - prefix_tokens).sum())
    assert len(packed.tokens_L) == 2 * prefix_tokens + own_tokens
    assert unpacked_tokens(batch.loss_mask_BT) == int((batch.lengths_B - 1).sum())


def test_a_group_that_does_not_fit_repeats_its_prefix_and_rows_unscored_are_left_out() -> None:
    batch = make_batch(groups=1, rows_per_group=6)
    scored_BT = batch.loss_mask_BT.copy()
    scored_BT[2] = False
    passes = pack(batch.tokens_BT, scored_BT, batch.group_ids_B, 35)
    assert len(passes) > 1
    assert {row for packed in passes for row in packed.rows_N.tolist()} == {0, 1, 3, 4, 5}
    for packed in passes:
        assert packed.tokens_L[: PROMPT_TOKENS + 1].tolist() == batch.tokens_BT[0, : PROMPT_TOKENS + 1].tolist()


def test_equal_rows_and_rows_that_contain_each_other_share_all_they_can() -> None:
    tokens_BT = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], np.int32)
    scored_BT = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0]], np.bool_)
    (packed,) = pack(tokens_BT, scored_BT, np.zeros(3, np.int32), 100)
    assert packed.tokens_L.tolist() == [1, 2, 3, 4, 3, 4]
    assert packed.predicting_N.tolist() == [1, 2, 3, 1, 4, 5, 1]
    assert common_prefix([tokens_BT[0]]) == 0


def test_no_scored_token_means_no_pass() -> None:
    batch = make_batch()
    assert pack(batch.tokens_BT, np.zeros_like(batch.loss_mask_BT), batch.group_ids_B, 100) == ()


def sees(layout: Layout, tokens: int, window: int | None) -> np.ndarray:
    """The dense mask that the layout's blocks amount to."""
    place_of = {int(place): index for index, place in enumerate(layout.place_L)}
    dense, offset = np.zeros((tokens, tokens), np.bool_), 0
    for block in layout.blocks:
        S, n = block.query_Sn.shape
        m = block.key_Sm.shape[1]
        mask = block.mask(window)
        mask = torch.ones(1, 1, n, m, dtype=torch.bool).tril() if mask is None else mask
        for s, i in np.ndindex(S, n):
            if offset + s * n + i in place_of:
                query = place_of[offset + s * n + i]
                assert query == block.query_Sn[s, i]
                keys = block.key_Sm[s][mask.expand(S, 1, n, m)[s, 0, i]].tolist()
                assert len(keys) == len(set(keys))
                dense[query, keys] = True
        offset += S * n
    return dense


@pytest.mark.parametrize("window", [None, 100, 8])
def test_the_blocks_let_a_token_see_its_history_and_nothing_else(window: int | None) -> None:
    batch = make_batch(rows_per_group=4)
    group_ids_B = np.where(np.arange(12) < 10, batch.group_ids_B, np.arange(12)).astype(np.int32)
    (packed,) = pack(batch.tokens_BT, batch.loss_mask_BT, group_ids_B, 10_000)
    expected = np.zeros((len(packed.tokens_L),) * 2, np.bool_)
    for span in packed.spans:
        for index in range(span.start, span.start + span.length):
            visible = [*range(span.prefix_start, span.prefix_start + span.prefix_length)]
            visible += range(span.start, index + 1)
            expected[index, visible[-(window or len(visible)) :]] = True
    layout = Layout.of(packed.spans, torch.device("cpu"))
    np.testing.assert_array_equal(sees(layout, len(packed.tokens_L), window), expected)


def test_spans_of_very_unlike_size_are_not_padded_to_each_other() -> None:
    spans = (Span(0, 50), *(Span(50 + 3 * i, 3, 0, 50) for i in range(20)), Span(110, 900, 0, 50))
    layout = Layout.of(spans, torch.device("cpu"))
    scores = sum(block.query_Sn.numel() * block.key_Sm.shape[1] for block in layout.blocks)
    wanted = sum(span.length * (span.prefix_length + span.length) for span in spans)
    assert scores < 1.2 * wanted
    assert [isinstance(block, Block) for block in layout.blocks] == [True] * 3


def test_padding_behind_a_sequence_changes_nothing() -> None:
    batch = make_batch()
    other = replace(batch, tokens_BT=np.where(np.arange(23) < batch.lengths_B[:, None], batch.tokens_BT, 77))
    one, two = (pack(b.tokens_BT, b.loss_mask_BT, b.group_ids_B, 60) for b in (batch, other))
    assert [p.tokens_L.tolist() for p in one] == [p.tokens_L.tolist() for p in two]
