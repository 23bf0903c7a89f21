"""Torchtune's decoder, fed with packed passes."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
from art_torch.train.packed_attention import Layout, packed_attention
from art_torch.train.packing import Pass, pack
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchtune.modules import TransformerDecoder
from transformers import PreTrainedModel

from art_torchtune.architecture import build_decoder
from art_torchtune.conversion import base_to_tune


class TunePassModel:
    """A torchtune decoder that shares the weights of a transformers model; see `PassModel`.

    Args:
        model: Frozen; its architecture passed `architecture.require_supported`. Weights are shared but for those whose
            rows stand in another order in torchtune.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._device = model.device
        self.decoder = build_decoder(model.config, model.device)
        self.decoder.load_state_dict(base_to_tune(model.state_dict(), model.config), assign=True)
        self.decoder.requires_grad_(False).eval()
        self.head = _take_head(self.decoder)
        # It is checked against a pass's length, and a pass holds many sequences; each was checked when it was let in.
        self.decoder.max_seq_len = sys.maxsize
        for layer in self.decoder.layers:
            layer.attn._attention_call = partial(_attend, layer.attn)

    def checkpoint_layers(self) -> None:
        """Recompute each layer in the backward pass, from now on."""
        for index, layer in enumerate(self.decoder.layers):
            self.decoder.layers[index] = checkpoint_wrapper(layer, preserve_rng_state=False)

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
        hidden_1LD: Tensor = self.decoder(
            self.to_device(packed.tokens_L)[None],
            mask=Layout.of(packed.spans, self._device),
            input_pos=self.to_device(packed.positions_L)[None],
        )
        # The decoder ends with a cast to float32, meant for logits.
        return hidden_1LD[0].index_select(0, self.to_device(packed.predicting_N)).to(self.head.weight.dtype)

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        """The array as a tensor where the model is."""
        return torch.from_numpy(array).to(self._device)


def _take_head(decoder: TransformerDecoder) -> nn.Linear:
    """Take the output layer off a decoder: the learner asks for logits where they are needed alone."""
    head = decoder.output
    if not isinstance(head, nn.Linear):  # tied to the embeddings
        embeddings = decoder.tok_embeddings
        head = nn.Linear(embeddings.embedding_dim, embeddings.num_embeddings, bias=False, device="meta")
        head.weight = embeddings.weight
    decoder.output = nn.Identity()
    return head


def _attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    """Packed attention in the form that torchtune calls: (1, H, L, D) each, keys repeated for all heads already.

    What torchtune hands on as ``mask`` is the pass's layout; the other options are for dropout and plain rows.
    """
    result_1LHD, _ = packed_attention(attention, q, k, v, None, layout=options["mask"])
    return result_1LHD.transpose(1, 2)
