"""A causal language model that takes packed passes, and is checked to compute the same as on plain sequences."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from art_core.errors import ConfigError
from art_torch.train.packed_attention import IMPLEMENTATION, Layout
from art_torch.train.packing import Pass, pack
from art_torch.train.pass_model import score_pass

_SAMPLE_ROWS, _SAMPLE_TOKENS, _SAMPLE_PREFIX = 2, 12, 5
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a logprob that rounding explains; a wrong mask or a missed soft cap is far above it."""


class PackedModel:
    """The model's decoder and head, fed with passes."""

    def __init__(self, model: PreTrainedModel, gradient_checkpointing: bool) -> None:
        """Switch a loaded model to packed attention.

        Args:
            model: Changed in place: its attention takes packed passes only, from now on.
            gradient_checkpointing: Recompute each layer in the backward pass.

        Raises:
            ConfigError: The architecture does something in its attention or its head that passes can't express.
        """
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not isinstance(head, nn.Linear):
            raise ConfigError(f"{type(model).__name__} has no linear output layer; packed passes need one")
        self.head = head
        self._decoder = model.get_decoder()  # type: ignore[no-untyped-call]
        self._device = model.device
        expected_N = _plain_sample(model, self._device)
        model.set_attn_implementation(IMPLEMENTATION)
        self._verify(expected_N, model)
        if gradient_checkpointing:
            _checkpoint_layers(model)

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

    def _verify(self, expected_N: NDArray[np.float32], model: PreTrainedModel) -> None:
        tokens_BT, scored_BT = _sample(model)
        (packed,) = pack(tokens_BT, scored_BT, np.zeros(_SAMPLE_ROWS, np.int32), tokens_BT.size)
        seen_N = score_pass(self, packed, tokens_BT, np.ones(tokens_BT.shape, np.float32), tokens_BT.size)
        worst = float(np.abs(seen_N - expected_N).max())
        if not worst <= _TOLERANCE[model.dtype]:
            raise ConfigError(
                f"{type(model).__name__} computes something that packed passes can't express: logprobs differ by "
                f"{worst:.2g} from plain sequences, allowed {_TOLERANCE[model.dtype]:g}; choose another architecture "
                "or another trainer"
            )


def _sample(model: PreTrainedModel) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Two sequences that share a prefix, and which of their tokens are scored: all but the first."""
    shape = (_SAMPLE_ROWS, _SAMPLE_TOKENS)
    tokens_BT = np.arange(_SAMPLE_ROWS * _SAMPLE_TOKENS, dtype=np.int32).reshape(shape) * 7 + 3
    tokens_BT[:, :_SAMPLE_PREFIX] = tokens_BT[0, :_SAMPLE_PREFIX]
    scored_BT = np.ones(shape, np.bool_)
    scored_BT[:, 0] = False
    return (tokens_BT % model.config.get_text_config().vocab_size).astype(np.int32), scored_BT


def _plain_sample(model: PreTrainedModel, device: torch.device) -> NDArray[np.float32]:
    """The sample's logprobs by the model's own forward, row by row."""
    tokens_BT = torch.from_numpy(_sample(model)[0].astype(np.int64)).to(device)
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1].float()
    logprobs_BT = logits_BTV.log_softmax(-1).gather(2, tokens_BT[:, 1:, None])[:, :, 0]
    logprobs_N: NDArray[np.float32] = logprobs_BT.flatten().cpu().numpy()
    return logprobs_N


def _checkpoint_layers(model: PreTrainedModel) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # Layers checkpoint in training mode alone. Set on the layer itself, not on what is in it: there it would
            # switch dropout on.
            module.training = True
