"""The trainer's metrics: what each is, and how the passes of a step add up to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_torch.train.head import Scores
from art_torch.train.kl import LOG_RATIO_LIMIT, estimate
from art_torch.train.loss import TokenLoss
from art_torch.train.packing import Pass

METRICS = {
    "loss/train": "loss of the batch, each update's before it: sum over sampled tokens, divided by their number",
    "loss/grad_norm": "global L2 norm of the adapter's gradient before clipping; mean over the step's updates",
    "loss/learning_rate": "AdamW step size, mean over the step's updates; 0 where no update was made",
    "loss/entropy": "mean entropy in nats of the distributions that the trained rows' tokens were sampled from",
    "loss/ratio_mean": "mean importance ratio, new over old probability, of the trained rows' sampled tokens",
    "loss/ratio_max": "largest importance ratio of the trained rows' sampled tokens",
    "loss/clip_fraction": "share of the trained rows' sampled tokens whose ratio lay outside the clip's limits",
    "loss/kl_policy_old": "estimated KL(old ‖ new) in nats a token, old being the policy that the ratio is taken to",
    "loss/kl_policy_ref": "estimated KL(policy ‖ reference) in nats a token before the step; only with a KL penalty",
    "offpolicy/engine_ratio_mean": "mean of the trainer's probability before the step over the one that came with the "
    "token, of those that the newest policy in the batch sampled",
    "offpolicy/engine_ratio_max": "largest of these ratios",
    "offpolicy/engine_logprob_gap": "mean absolute difference, in nats, of the same two probabilities' logs",
    "offpolicy/engine_logprob_gap_max": "largest of these differences",
    "data/step_num_gradient_steps": "optimizer updates that the step made",
    "data/step_trainable_tokens": "sampled tokens in the batch",
    "data/step_packed_tokens": "tokens that went through the model with gradient, shared prefixes counted once a pass",
    "data/step_unpacked_tokens": "tokens that would have gone through it without sharing",
}
"""Metric to meaning. A row is trained where any of its sampled tokens has an advantage; the `loss/` and `offpolicy/`
metrics from ``entropy`` on are measured on those, and left out where there are none. Ratios are measured at the level
that the step asks for; the importance ratio's log is held within ±20."""


@dataclass
class Tally:
    """What the passes of one step measured."""

    own_logprobs_BT: NDArray[np.float32]
    """At each token's own temperature, under the weights before the step; NaN where not known."""
    updates: int = 0
    """How many were made so far."""
    loss_sum: float = 0.0
    _entropies: list[torch.Tensor] = field(default_factory=list)
    _losses: list[TokenLoss] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)

    def add(self, packed: Pass, scores: Scores, losses: list[TokenLoss]) -> None:
        """Count one pass in.

        Args:
            packed: The pass.
            scores: Of its N scored tokens.
            losses: Of the same tokens, chunk by chunk.
        """
        if self.updates == 0:
            self.own_logprobs_BT[packed.rows_N, packed.columns_N] = scores.logprobs_N.cpu().numpy()
        self.loss_sum += float(torch.stack([loss.loss_N.detach().sum() for loss in losses]).sum())
        self._entropies.append(scores.entropies_N)
        self._losses.extend(losses)

    def updated(self, norm: float, learning_rate: float) -> None:
        """Count one update in.

        Args:
            norm: Of its gradient, before clipping.
            learning_rate: Its step size.
        """
        self.updates += 1
        self._norms.append(norm)
        self._rates.append(learning_rate)

    def metrics(self, batch: TrainBatch) -> dict[str, float]:
        """The metrics that are measured on tokens and updates."""
        ratio_N = torch.cat([loss.ratio_N for loss in self._losses])
        log_ratio_N = torch.cat([loss.log_ratio_N for loss in self._losses])
        return {
            "loss/train": self.loss_sum / batch.loss_tokens,
            "loss/grad_norm": float(np.mean(self._norms)),
            "loss/learning_rate": float(np.mean(self._rates)),
            "loss/entropy": float(torch.cat(self._entropies).mean()),
            "loss/ratio_mean": float(ratio_N.mean()),
            "loss/ratio_max": float(ratio_N.max()),
            "loss/clip_fraction": float(torch.cat([loss.outside_N for loss in self._losses]).float().mean()),
            "loss/kl_policy_old": estimate(log_ratio_N.cpu().numpy()),
            "data/step_num_gradient_steps": float(self.updates),
            **engine_agreement(batch, self.own_logprobs_BT),
        }


def engine_agreement(batch: TrainBatch, own_logprobs_BT: NDArray[np.float32]) -> dict[str, float]:
    """How far the engine that sampled and the trainer agree on the same tokens.

    Measured on the tokens of the newest policy in the batch: where that is the one that the trainer held, both
    computed with the same weights, and what is left is rounding, or two different functions.

    Args:
        batch: Its logprobs are the engine's.
        own_logprobs_BT: The trainer's before the step; NaN where not known.
    """
    steps_BT = np.where(batch.loss_mask_BT, batch.policy_steps_BT, -1)
    compared_BT = batch.loss_mask_BT & (steps_BT == steps_BT.max())
    gap_N = (own_logprobs_BT - batch.logprobs_BT)[compared_BT]
    gap_N = np.clip(gap_N[np.isfinite(gap_N)], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if not gap_N.size:
        return {}
    return {
        "offpolicy/engine_ratio_mean": float(np.exp(gap_N).mean()),
        "offpolicy/engine_ratio_max": float(np.exp(gap_N).max()),
        "offpolicy/engine_logprob_gap": float(np.abs(gap_N).mean()),
        "offpolicy/engine_logprob_gap_max": float(np.abs(gap_N).max()),
    }


def idle_metrics(batch: TrainBatch) -> dict[str, float]:
    """Of a step that had nothing to learn: no pass with gradient, so nothing was measured on tokens.

    Args:
        batch: The step's.
    """
    return {
        "loss/train": 0.0,
        "loss/grad_norm": 0.0,
        "loss/learning_rate": 0.0,
        "data/step_num_gradient_steps": 0.0,
        "data/step_trainable_tokens": float(batch.loss_tokens),
        "data/step_packed_tokens": 0.0,
        "data/step_unpacked_tokens": 0.0,
    }
