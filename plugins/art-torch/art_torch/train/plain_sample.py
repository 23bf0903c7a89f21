"""A model's own logprobs of a small sample: passes must give the same, whatever the architecture does besides."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from art_core.errors import ConfigError
from art_torch.train.pass_model import PassModel, score_pass

_ROWS, _TOKENS, _PREFIX = 2, 12, 5
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference of a logprob that rounding explains; a wrong mask or a missed soft cap is far above it."""


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The model's output layer.

    Raises:
        ConfigError: It is not linear, so that logprobs can't be computed chunk by chunk.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{type(model).__name__} has no linear output layer; choose another architecture")
    return head


def plain_logprobs(model: PreTrainedModel) -> NDArray[np.float32]:
    """The sample's logprobs by the model's own forward, row by row."""
    tokens_BT = torch.from_numpy(_sample(model)[0].astype(np.int64)).to(model.device)
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1].float()
    logprobs_BT = logits_BTV.log_softmax(-1).gather(2, tokens_BT[:, 1:, None])[:, :, 0]
    logprobs_N: NDArray[np.float32] = logprobs_BT.flatten().cpu().numpy()
    return logprobs_N


def require_same(passes: PassModel, model: PreTrainedModel, plain_N: NDArray[np.float32]) -> None:
    """Refuse passes that compute another function than the model's own forward does.

    Args:
        passes: What a learner is to be given.
        model: What it was made of.
        plain_N: What `plain_logprobs` gave before that.

    Raises:
        ConfigError: They differ by more than rounding explains.
    """
    tokens_BT, scored_BT = _sample(model)
    (packed,) = passes.passes(tokens_BT, scored_BT, np.zeros(_ROWS, np.int32), tokens_BT.size)
    seen_N = score_pass(passes, packed, tokens_BT, np.ones(tokens_BT.shape, np.float32), tokens_BT.size)
    worst = float(np.abs(seen_N - plain_N).max())
    if not worst <= _TOLERANCE[model.dtype]:
        raise ConfigError(
            f"{type(model).__name__} computes something that passes can't express: logprobs differ by "
            f"{worst:.2g} from plain sequences, allowed {_TOLERANCE[model.dtype]:g}; choose another architecture "
            "or another trainer"
        )


def _sample(model: PreTrainedModel) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Two sequences that share a prefix, and which of their tokens are scored: all but the first."""
    shape = (_ROWS, _TOKENS)
    tokens_BT = np.arange(_ROWS * _TOKENS, dtype=np.int32).reshape(shape) * 7 + 3
    tokens_BT[:, :_PREFIX] = tokens_BT[0, :_PREFIX]
    scored_BT = np.ones(shape, np.bool_)
    scored_BT[:, 0] = False
    return (tokens_BT % model.config.get_text_config().vocab_size).astype(np.int32), scored_BT
