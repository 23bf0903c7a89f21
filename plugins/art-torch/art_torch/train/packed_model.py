"""A causal language model that takes packed passes, and is checked to compute the same as on plain sequences."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from art_torch.train.packed_attention import IMPLEMENTATION, Layout
from art_torch.train.packing import Pass, pack
from art_torch.train.plain_sample import output_layer, plain_logprobs, require_same


class PackedModel:
    """The model's decoder and head, fed with passes."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Switch a loaded model to packed attention.

        Args:
            model: Changed in place: its attention takes packed passes only, from now on.

        Raises:
            ConfigError: The architecture does something in its attention or its head that passes can't express.
        """
        self.head = output_layer(model)
        self._decoder = model.get_decoder()  # type: ignore[no-untyped-call]
        self._device = model.device
        plain_N = plain_logprobs(model)
        model.set_attn_implementation(IMPLEMENTATION)
        require_same(self, model, plain_N)

    def passes(
        self,
        tokens_BT: NDArray[np.int32],
        scored_BT: NDArray[np.bool_],
        group_ids_B: NDArray[np.int32],
        limit_tokens: int,
    ) -> tuple[Pass, ...]:
        """See `packing.pack`."""
        return pack(tokens_BT, scored_BT, group_ids_B, limit_tokens)

    def hidden(self, packed: Pass) -> Tensor:
        """See `PassModel`."""
        output = self._decoder(
            input_ids=self.to_device(packed.tokens_L)[None],
            position_ids=self.to_device(packed.positions_L)[None],
            use_cache=False,
            layout=Layout.of(packed.spans, self._device),
        )
        hidden_LD: Tensor = output.last_hidden_state[0]
        return hidden_LD.index_select(0, self.to_device(packed.predicting_N))

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        """The array as a tensor where the model is."""
        return torch.from_numpy(array).to(self._device)
