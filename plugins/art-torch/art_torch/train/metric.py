"""The trainer's metrics: what each is, and how the passes of a step add up to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_torch.train.head import Scores
from art_torch.train.loss import TokenLoss
from art_torch.train.packing import Pass

METRICS = {
    "loss/train": "loss of the batch before the update: sum over sampled tokens, divided by their number",
    "loss/grad_norm": "global L2 norm of the adapter's gradient before clipping",
    "loss/learning_rate": "AdamW step size of this step; 0 where no update was made",
    "loss/entropy": "mean entropy in nats of the distributions that the trained rows' tokens were sampled from",
    "loss/ratio_mean": "mean importance ratio, new over old probability, of the trained rows' sampled tokens",
    "loss/ratio_max": "largest importance ratio of the trained rows' sampled tokens",
    "loss/clip_fraction": "share of the trained rows' sampled tokens whose ratio lay outside the clip's limits",
    "loss/engine_logprob_gap": "mean absolute difference, in nats, between the trainer's logprobs before the update "
    "and those that came with the trained rows' sampled tokens",
    "data/step_trainable_tokens": "sampled tokens in the batch: the loss is divided by this",
    "data/step_packed_tokens": "tokens that went through the model, shared prefixes counted once a pass",
    "data/step_unpacked_tokens": "tokens that would have gone through it without sharing",
}
"""Metric to meaning. A row is trained where any of its sampled tokens has an advantage; the `loss/` metrics from
``entropy`` on are measured on those, and left out where there are none."""


@dataclass
class Tally:
    """What the passes of one step measured."""

    logprobs_BT: NDArray[np.float32]
    """At each token's own temperature, before the update; NaN where no pass has scored the token."""
    loss: float = 0.0
    _scores: list[Scores] = field(default_factory=list)
    _losses: list[TokenLoss] = field(default_factory=list)
    _gaps: list[Tensor] = field(default_factory=list)

    def add(self, packed: Pass, scores: Scores, old_logprobs_N: Tensor, token_losses: list[TokenLoss]) -> None:
        """Count one pass in.

        Args:
            packed: The pass.
            scores: Of its N scored tokens.
            old_logprobs_N: As they came with the batch.
            token_losses: Of the same tokens, chunk by chunk.
        """
        self.logprobs_BT[packed.rows_N, packed.columns_N] = scores.logprobs_N.cpu().numpy()
        self._scores.append(scores)
        self._gaps.append((scores.logprobs_N - old_logprobs_N).abs())
        self._losses.extend(token_losses)

    def metrics(self) -> dict[str, float]:
        """The metrics that are measured on tokens."""
        ratio_N = torch.cat([loss.ratio_N for loss in self._losses])
        return {
            "loss/train": self.loss,
            "loss/entropy": float(torch.cat([scores.entropies_N for scores in self._scores]).mean()),
            "loss/ratio_mean": float(ratio_N.mean()),
            "loss/ratio_max": float(ratio_N.max()),
            "loss/clip_fraction": float(torch.cat([loss.clipped_N for loss in self._losses]).float().mean()),
            "loss/engine_logprob_gap": float(torch.cat(self._gaps).mean()),
        }
