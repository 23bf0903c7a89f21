"""The losses, per sampled token. They take tensors and a `StepConfig`, and know of no model.

The loss of an update is the sum over its sampled tokens divided by their number, whatever pass a token is in: every
token weighs the same, and gradients accumulated over passes equal those of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from art_core.step import Level, StepConfig
from art_torch.train.kl import LOG_RATIO_LIMIT


@dataclass(frozen=True, eq=False)
class Tokens:
    """N sampled tokens: what the loss has to know beside their logprobs under the weights being trained.

    All logprobs are natural-log and of the distribution that was sampled, i.e. at the token's own temperature.
    """

    old_logprobs_N: Tensor
    """Under the policy that the ratio is taken to; NaN: the present weights, whatever they are."""
    advantages_N: Tensor
    """What the token is worth above its group's mean, KL penalty included."""
    sequences_N: Tensor
    """Which sequence a token is of, int64 from 0; all of a sequence's tokens of an update must stand here together."""
    engine_logprobs_N: Tensor | None = None
    """As they came with the tokens; needed where `truncated_importance_sampling` is set."""

    def part(self, part: slice) -> Tokens:
        """Some of the tokens."""
        engine_N = self.engine_logprobs_N
        return Tokens(
            self.old_logprobs_N[part],
            self.advantages_N[part],
            self.sequences_N[part],
            None if engine_N is None else engine_N[part],
        )


@dataclass(frozen=True, eq=False)
class TokenLoss:
    """N tokens' losses, and what they came of, detached."""

    loss_N: Tensor
    """To be summed and divided by the number of sampled tokens of the whole update."""
    ratio_N: Tensor
    """Importance ratio at the level asked for, unclipped."""
    outside_N: Tensor
    """Whether the ratio lay outside the clip's limits, bool."""
    log_ratio_N: Tensor
    """Natural log of the token's own ratio."""


def policy_loss(logprobs_N: Tensor, tokens: Tokens, config: StepConfig) -> TokenLoss:
    """Loss of every sampled token under the algorithm that `config` names.

    Args:
        logprobs_N: Natural-log probability under the weights being trained; the gradient flows into it.
        tokens: The same N tokens.
        config: Loss, level, clip's limits and corrections.
    """
    old_N = torch.where(tokens.old_logprobs_N.isnan(), logprobs_N.detach(), tokens.old_logprobs_N)
    log_ratio_N = (logprobs_N - old_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    free_log_ratio_N = log_ratio_N.detach()
    advantages_N = tokens.advantages_N
    if config.kimi_k2_tau is not None:
        advantages_N = pulled_to_old(advantages_N, free_log_ratio_N, config.kimi_k2_tau)
    free_ratio_N = ratio_N = importance_ratio(log_ratio_N, tokens.sequences_N, config.importance_sampling_level)
    if (largest := config.max_negative_advantage_importance_sampling_weight) is not None:
        ratio_N = bounded_where_negative(ratio_N, advantages_N, largest)
    low, high = config.ratio_limits
    outside_N = ((free_ratio_N < low) | (free_ratio_N > high)).detach()
    if config.loss_fn == "cispo":
        loss_N = cispo(logprobs_N, ratio_N.clamp(low, high), advantages_N)
    elif config.loss_fn == "cross_entropy":
        loss_N = cross_entropy(logprobs_N, advantages_N)
    else:
        loss_N = ppo(ratio_N, ratio_N.clamp(low, high), advantages_N)
    if config.mask_prob_ratio:
        loss_N = loss_N.masked_fill(outside_N, 0.0)
    if config.truncated_importance_sampling is not None:
        assert tokens.engine_logprobs_N is not None
        loss_N = loss_N * truncated_weight(old_N, tokens.engine_logprobs_N, config.truncated_importance_sampling)
    return TokenLoss(loss_N, free_ratio_N.detach(), outside_N, free_log_ratio_N)


def importance_ratio(log_ratio_N: Tensor, sequences_N: Tensor, level: Level) -> Tensor:
    """New over old probability of every token, or of its whole sequence.

    A sequence's ratio is the geometric mean of its sampled tokens' ratios, so that long and short ones compare.

    Args:
        log_ratio_N: Natural log of each token's ratio; gradients flow through it.
        sequences_N: Which sequence a token is of, int64 from 0.
        level: ``token``, ``sequence``, their mean ``average``, or their geometric mean ``geometric_average``.

    Source:
        Sequence: Zheng et al. 2025, GSPO (arXiv:2507.18071), equation 7. The two means are openpipe-art's.
    """
    if level == "token":
        return log_ratio_N.exp()
    count = int(sequences_N.max()) + 1
    tokens_S = torch.bincount(sequences_N, minlength=count)
    total_S = log_ratio_N.new_zeros(count).index_add(0, sequences_N, log_ratio_N)
    sequence_N = (total_S / tokens_S)[sequences_N]
    if level == "sequence":
        return sequence_N.exp()
    if level == "average":
        return (log_ratio_N.exp() + sequence_N.exp()) / 2
    return ((log_ratio_N + sequence_N) / 2).exp()


def cispo(logprobs_N: Tensor, clipped_ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Minus the clipped ratio, held constant, times advantage times logprob.

    The clip bounds a token's weight and never silences it, unlike PPO's.

    Source: MiniMax-M1 (arXiv:2506.13585), equations 4 and 5.
    """
    return -(clipped_ratio_N.detach() * advantages_N * logprobs_N)


def cross_entropy(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Minus weight times logprob: what supervised fine-tuning minimises, its tokens' weights being 1.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", equation 1, negated.
    """
    return -(weights_N * logprobs_N)


def ppo(ratio_N: Tensor, clipped_ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Minus the smaller of ratio times advantage and clipped ratio times advantage.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv:1707.06347), equation 7; with two
    limits of its own for the clip, Yu et al. 2025, DAPO (arXiv:2503.14476), section 3.1.
    """
    return -torch.minimum(ratio_N * advantages_N, clipped_ratio_N * advantages_N)


def bounded_where_negative(ratio_N: Tensor, advantages_N: Tensor, largest: float) -> Tensor:
    """The ratio, at most `largest` where the advantage is negative: there PPO's minimum bounds nothing from above.

    Source: Ye et al. 2020, dual-clip PPO (arXiv:1912.09729), equation 5.
    """
    return torch.where(advantages_N < 0, ratio_N.clamp(max=largest), ratio_N)


def pulled_to_old(advantages_N: Tensor, log_ratio_N: Tensor, tau: float) -> Tensor:
    """Advantages less tau times the log ratio: the gradient of a penalty of tau/2 times its square.

    Source: Kimi k1.5 (arXiv:2501.12599), equation 3, there over a whole answer's log ratio; per token here.
    """
    return advantages_N - tau * log_ratio_N


def truncated_weight(old_logprobs_N: Tensor, engine_logprobs_N: Tensor, largest: float) -> Tensor:
    """The trainer's old probability over the engine's, at most `largest`, held constant.

    Source: Espeholt et al. 2018, IMPALA (arXiv:1802.01561), section 4.1: truncated importance sampling weights.
    """
    log_ratio_N = (old_logprobs_N - engine_logprobs_N).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio_N.exp().clamp(max=largest).detach()
