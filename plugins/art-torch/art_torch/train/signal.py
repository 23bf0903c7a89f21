"""What a step's sampled tokens are to teach, settled before its first update. Knows of no model: scorers are handed in.

Rewards have given every token an advantage. Here the reference policy's opinion is taken into it, and it is settled
which old logprobs the importance ratio is taken to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_core.errors import NonFiniteLossError
from art_core.step import StepConfig
from art_torch.train.kl import estimate, penalised

Scorer = Callable[[NDArray[np.bool_]], NDArray[np.float32]]
"""Given which tokens of the batch are wanted: their logprobs, each at its own temperature; NaN elsewhere. (B, T)."""


@dataclass(frozen=True, eq=False)
class Signal:
    """Per token of a batch; all logprobs are natural-log, at the token's own temperature."""

    advantages_BT: NDArray[np.float32]
    """KL penalty included; 0 where not sampled."""
    old_logprobs_BT: NDArray[np.float32]
    """What the importance ratio is taken to; NaN at sampled tokens: the weights of the moment."""
    own_logprobs_BT: NDArray[np.float32]
    """Under the trainer's weights before the step; NaN where not computed."""
    metrics: dict[str, float]

    @property
    def trained_B(self) -> NDArray[np.bool_]:
        """Rows with an advantage: those without need no forward."""
        trained_B: NDArray[np.bool_] = (self.advantages_BT != 0).any(axis=1)
        return trained_B


def make_signal(batch: TrainBatch, config: StepConfig, own: Scorer, reference: Scorer) -> Signal:
    """Settle advantages and old logprobs. Scores what the options need, and nothing where they need nothing.

    Args:
        batch: What to learn from.
        config: KL penalty, old logprobs and updates.
        own: The trainer's weights before the step.
        reference: The reference policy; called only for a KL penalty.

    Raises:
        NonFiniteLossError: The reference gives no finite logprobs.
    """
    sampled_BT, advantages_BT = batch.loss_mask_BT, batch.advantages_BT * batch.loss_mask_BT
    penalty = config.kl_penalty_coef > 0
    wanted_BT = sampled_BT if penalty else sampled_BT & (advantages_BT != 0).any(axis=1, keepdims=True)
    unscored_BT = np.full(sampled_BT.shape, np.nan, np.float32)
    own_BT = own(wanted_BT) if _needs_own(batch, config) else unscored_BT
    metrics: dict[str, float] = {}
    if penalty and sampled_BT.any():
        policy_BT = own_BT if config.kl_penalty_source == "current_learner" else _filled(batch.logprobs_BT, own_BT)
        log_ratio_BT = policy_BT - reference(wanted_BT)
        metrics["loss/kl_policy_ref"] = estimate(-log_ratio_BT[sampled_BT])
        if not np.isfinite(log_ratio_BT[sampled_BT]).all():
            raise NonFiniteLossError(
                "the reference policy gives a logprob that is not finite; choose another reference", stage="train"
            )
        advantages_BT = penalised(advantages_BT, log_ratio_BT, sampled_BT, config.kl_penalty_coef)
    old_BT = own_BT if config.precalculate_logprobs else _filled(batch.logprobs_BT, own_BT)
    return Signal(advantages_BT, old_BT, own_BT, metrics)


def _needs_own(batch: TrainBatch, config: StepConfig) -> bool:
    penalty = config.kl_penalty_coef > 0
    # Where logprobs are missing a single update finds its own in its passes; later updates have moved away from them.
    # Cross-entropy has no old policy at all.
    several = config.update_sequences is not None and config.loss_fn != "cross_entropy"
    missing = batch.tokens_without_logprob > 0 and (penalty or several)
    return config.precalculate_logprobs or (penalty and config.kl_penalty_source == "current_learner") or missing


def _filled(logprobs_BT: NDArray[np.float32], own_BT: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isnan(logprobs_BT), own_BT, logprobs_BT)
