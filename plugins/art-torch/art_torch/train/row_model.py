"""A causal language model that takes plain rows: for kernels that know nothing of packed passes.

A prompt is computed once for every row that begins with it, and rows of one pass are padded to the longest. Rows of
like length go together, so that little is padding. Padding stands at a row's end, where causal attention keeps it from
every real token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from art_torch.train.packing import Pass, input_length, pack
from art_torch.train.plain_sample import output_layer, plain_logprobs, require_same


class RowModel:
    """The model's decoder and head, fed with padded rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take over a loaded model; it is not changed.

        Args:
            model: Its decoder is called with token ids alone.

        Raises:
            ConfigError: The architecture does something in its head that `score` can't express.
        """
        self.head = output_layer(model)
        self._decoder = model.get_decoder()  # type: ignore[no-untyped-call]
        self._device = model.device
        require_same(self, model, plain_logprobs(model))

    def passes(
        self,
        tokens_BT: NDArray[np.int32],
        scored_BT: NDArray[np.bool_],
        group_ids_B: NDArray[np.int32],
        limit_tokens: int,
    ) -> tuple[Pass, ...]:
        """Rows in order of their length; a pass, padding included, is within the limit unless it is a single row.

        Args:
            tokens_BT: Token ids, int32.
            scored_BT: Which of them are wanted; never the first column.
            group_ids_B: Not used: no prefix is shared.
            limit_tokens: Most tokens in a pass.
        """
        alone_B = np.arange(len(group_ids_B), dtype=np.int32)
        passes: list[Pass] = []
        for rows in _batches(scored_BT, limit_tokens):
            chosen_BT = scored_BT & np.isin(alone_B, rows)[:, None]
            passes.extend(pack(tokens_BT, chosen_BT, alone_B, scored_BT.size))
        return tuple(passes)

    def hidden(self, packed: Pass) -> Tensor:
        """See `PassModel`."""
        starts_S = np.array([span.start for span in packed.spans])
        lengths_S = np.array([span.length for span in packed.spans])
        width = int(lengths_S.max())
        column_n = np.arange(width)
        place_Sn = np.where(column_n < lengths_S[:, None], starts_S[:, None] + column_n, 0)
        row_N = np.searchsorted(starts_S, packed.predicting_N, side="right") - 1
        index_N = row_N * width + packed.predicting_N - starts_S[row_N]
        output = self._decoder(input_ids=self.to_device(packed.tokens_L[place_Sn]), use_cache=False)
        hidden_LD: Tensor = output.last_hidden_state.flatten(0, 1)
        return hidden_LD.index_select(0, self.to_device(index_N))

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        """The array as a tensor where the model is."""
        return torch.from_numpy(array).to(self._device)


def _batches(scored_BT: NDArray[np.bool_], limit_tokens: int) -> Iterator[list[int]]:
    lengths = {row: input_length(scored_BT[row]) for row in np.flatnonzero(scored_BT.any(axis=1)).tolist()}
    rows: list[int] = []
    for row in sorted(lengths, key=lambda each: (-lengths[each], each)):
        if rows and (len(rows) + 1) * lengths[rows[0]] > limit_tokens:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
