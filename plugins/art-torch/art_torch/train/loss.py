"""The policy-gradient losses, per sampled token.

The loss of a batch is the sum over its sampled tokens divided by their number, whatever pass a token is in: every
token weighs the same, and gradients accumulated over passes equal those of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from art_core.step import StepConfig

_LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: a ratio beyond it is noise, and its float32 exponential would overflow soon after."""


@dataclass(frozen=True)
class TokenLoss:
    """N tokens' losses and importance ratios."""

    loss_N: Tensor
    """To be summed and divided by the number of sampled tokens of the whole batch."""
    ratio_N: Tensor
    """New over old probability, unclipped, detached."""
    clipped_N: Tensor
    """Whether the ratio lay outside the clip's limits, bool."""


def policy_loss(logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, config: StepConfig) -> TokenLoss:
    """Loss of every sampled token under the algorithm that `config` names.

    Both logprobs are those of the distribution that was sampled, i.e. at the token's own temperature.

    Args:
        logprobs_N: Natural-log probability under the weights being trained; the gradient flows into it.
        old_logprobs_N: Natural-log probability when the token was sampled.
        advantages_N: What the token is worth above its group's mean.
        config: `loss_fn` and the clip's limits.
    """
    log_ratio_N = (logprobs_N - old_logprobs_N).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    ratio_N = log_ratio_N.exp()
    low, high = config.ratio_limits
    clipped_ratio_N = ratio_N.clamp(low, high)
    if config.loss_fn == "cispo":
        loss_N = cispo(logprobs_N, clipped_ratio_N, advantages_N)
    else:
        loss_N = ppo(ratio_N, clipped_ratio_N, advantages_N)
    free_ratio_N = ratio_N.detach()
    return TokenLoss(loss_N, free_ratio_N, (free_ratio_N < low) | (free_ratio_N > high))


def cispo(logprobs_N: Tensor, clipped_ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Minus the clipped ratio, held constant, times advantage times logprob.

    The clip bounds a token's weight and never silences it, unlike PPO's.

    Source: MiniMax-M1 (arXiv:2506.13585), equations 4 and 5.
    """
    return -(clipped_ratio_N.detach() * advantages_N * logprobs_N)


def ppo(ratio_N: Tensor, clipped_ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Minus the smaller of ratio times advantage and clipped ratio times advantage.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv:1707.06347), equation 7.
    """
    return -torch.minimum(ratio_N * advantages_N, clipped_ratio_N * advantages_N)
