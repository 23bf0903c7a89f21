"""What a learner needs of a model: hidden states of planned passes, and an output layer. Any library can give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from art_core.base_model import ModelInfo
from art_torch.train.adapter import Adapter
from art_torch.train.head import score
from art_torch.train.packing import Pass


class PassModel(Protocol):
    """A causal language model, without gradient in its own weights, that takes passes of a batch."""

    @property
    def head(self) -> nn.Linear:
        """The frozen output layer."""
        ...

    def passes(
        self,
        tokens_BT: NDArray[np.int32],
        scored_BT: NDArray[np.bool_],
        group_ids_B: NDArray[np.int32],
        limit_tokens: int,
    ) -> tuple[Pass, ...]:
        """Plan the passes that give the logprob of every scored token; see `packing.pack`."""
        ...

    def hidden(self, packed: Pass) -> Tensor:
        """Final hidden states of the predicting positions, (N, D), with gradient where it is enabled.

        Args:
            packed: One of `passes`.
        """
        ...

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        """The array as a tensor where the model is."""
        ...


@dataclass(frozen=True, eq=False)
class Trainable:
    """What a trainer's library has built: a frozen base with an adapter in it, ready for `Learner`."""

    info: ModelInfo
    model: PassModel
    adapter: Adapter
    frozen: tuple[Tensor, ...]
    """The base's tensors, parameters and buffers, that `offload` takes off the device."""
    tokenizer: PreTrainedTokenizerBase
    """The base's, with the chat template that the spec asks for."""


def score_pass(
    model: PassModel,
    packed: Pass,
    tokens_BT: NDArray[np.int32],
    temperatures_BT: NDArray[np.float32],
    chunk_tokens: int,
) -> NDArray[np.float32]:
    """Logprobs of a pass's N scored tokens.

    Args:
        model: Computes them.
        packed: One pass of the batch.
        tokens_BT: The batch's tokens.
        temperatures_BT: What each token's logits are divided by.
        chunk_tokens: Most tokens whose logits are held at once.
    """
    where = (packed.rows_N, packed.columns_N)
    targets_N = model.to_device(tokens_BT[where]).long()
    temperatures_N = model.to_device(temperatures_BT[where])
    with torch.no_grad():
        scores = score(model.head, model.hidden(packed), targets_N, temperatures_N, chunk_tokens)
    logprobs_N: NDArray[np.float32] = scores.logprobs_N.cpu().numpy()
    return logprobs_N
