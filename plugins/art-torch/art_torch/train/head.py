"""Logprobs at the scored positions alone, in chunks: a vocabulary's worth of logits per token is the largest tensor.

Softmax and its gradient are written out, so that a chunk needs two arrays of its size and none outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_torch.frozen_linear import frozen_linear

_CHUNK_LOGITS = 1 << 24
"""Most logits held at once: 64 MiB in float32."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the model says of N tokens, float32, without gradient."""

    logprobs_N: Tensor
    """Natural log, at the temperatures asked for."""
    entropies_N: Tensor
    """Entropy in nats of the distribution that the token was drawn from."""


Slope = Callable[[slice, Tensor], Tensor]
"""Given a chunk's place among the N and its logprobs: the derivative of the loss by each of them."""


def score(head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor, temperatures_N: Tensor, chunk_tokens: int) -> Scores:
    """Logprob and entropy of each target.

    Args:
        head: The model's output layer.
        hidden_ND: Final hidden state of the position that predicts the target.
        targets_N: Token ids, int64.
        temperatures_N: The logits are divided by it, float32.
        chunk_tokens: Most tokens whose logits are held at once; fewer where the vocabulary is large.
    """
    with torch.no_grad():
        parts = [
            _softmax(head, hidden_ND[part], targets_N[part], temperatures_N[part])[1]
            for part in _chunks(len(targets_N), head.out_features, chunk_tokens)
        ]
    return _concatenate(parts)


def score_with_gradient(
    head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor, temperatures_N: Tensor, slope: Slope, chunk_tokens: int
) -> tuple[Scores, Tensor]:
    """As `score`, and the gradient of a loss of those logprobs by the hidden states.

    With z the logits over the temperature τ and p their softmax, d logprob / d z = onehot(target) − p.

    Args:
        head: The model's output layer, frozen.
        hidden_ND: Final hidden state of the position that predicts the target.
        targets_N: Token ids, int64.
        temperatures_N: The logits are divided by it, float32.
        slope: Derivative of the loss by the logprobs of a chunk.
        chunk_tokens: Most tokens whose logits are held at once; fewer where the vocabulary is large.

    Returns:
        The scores, and the gradient in the shape and dtype of `hidden_ND`.
    """
    parts, gradient_ND = [], torch.empty_like(hidden_ND)
    with torch.no_grad():
        for part in _chunks(len(targets_N), head.out_features, chunk_tokens):
            probabilities_NV, scores = _softmax(head, hidden_ND[part], targets_N[part], temperatures_N[part])
            slope_N1 = (slope(part, scores.logprobs_N) / temperatures_N[part])[:, None]
            logits_slope_NV = probabilities_NV.mul_(-slope_N1).scatter_add_(1, targets_N[part, None], slope_N1)
            gradient_ND[part] = frozen_linear(logits_slope_NV.to(head.weight.dtype), head.weight.T)
            parts.append(scores)
    return _concatenate(parts), gradient_ND


def _softmax(head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor, temperatures_N: Tensor) -> tuple[Tensor, Scores]:
    logits_NV = frozen_linear(hidden_ND, head.weight, head.bias).float().div_(temperatures_N[:, None])
    logprobs_NV = logits_NV.log_softmax(-1)
    logprobs_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    log_total_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - logprobs_N
    probabilities_NV = logprobs_NV.exp_()
    # The entropy is log Σ exp(z) − Σ p·z; as a product of matrices it needs no third array.
    expected_N = torch.bmm(probabilities_NV[:, None, :], logits_NV[:, :, None])[:, 0, 0]
    return probabilities_NV, Scores(logprobs_N, log_total_N - expected_N)


def _chunks(count: int, vocabulary: int, chunk_tokens: int) -> Iterator[slice]:
    size = max(1, min(chunk_tokens, _CHUNK_LOGITS // vocabulary))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _concatenate(parts: list[Scores]) -> Scores:
    return Scores(torch.cat([p.logprobs_N for p in parts]), torch.cat([p.entropies_N for p in parts]))
