"""The loss of one optimizer update, and its gradient, pass by pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_core.batch import TrainBatch
from art_core.step import StepConfig
from art_torch.train.head import Slope, score, score_with_gradient
from art_torch.train.loss import TokenLoss, Tokens, policy_loss
from art_torch.train.metric import Tally
from art_torch.train.packing import Pass
from art_torch.train.pass_model import PassModel
from art_torch.train.signal import Signal


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss over some rows of a batch: the sum over their sampled tokens, divided by the number of these."""

    batch: TrainBatch
    signal: Signal
    config: StepConfig
    rows_B: NDArray[np.bool_]
    """The update's rows, with or without an advantage."""

    @property
    def scored_BT(self) -> NDArray[np.bool_]:
        """The sampled tokens that need a forward pass: those of rows with an advantage."""
        return self.batch.loss_mask_BT & (self.rows_B & self.signal.trained_B)[:, None]

    @property
    def loss_tokens(self) -> int:
        """Number of sampled tokens of the rows, by which the loss is divided."""
        return int(self.batch.loss_mask_BT[self.rows_B].sum())

    @property
    def learning_rate(self) -> float:
        """The update's step size.

        Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.1, for a power of 1; Krizhevsky 2014 (arXiv:1404.5997)
            for 0.5.
        """
        trajectories = len(np.unique(self.batch.trajectory_ids_B[self.rows_B & self.signal.trained_B]))
        power = self.config.num_trajectories_learning_rate_multiplier_power
        return self.config.learning_rate * math.pow(trajectories, power)

    def passes(self, model: PassModel) -> tuple[Pass, ...]:
        """The forward passes that the gradient needs."""
        batch = self.batch
        return model.passes(batch.tokens_BT, self.scored_BT, batch.group_ids_B, self.config.microbatch_tokens)

    def backward(self, model: PassModel, packed: Pass, tally: Tally) -> None:
        """Add one pass's share of the gradient, and count what it saw.

        Args:
            model: Its adapter gets the gradient.
            packed: One of `passes`.
            tally: What the step measures.
        """
        where = (packed.rows_N, packed.columns_N)
        targets_N = model.to_device(self.batch.tokens_BT[where]).long()
        temperatures_N = model.to_device(self.batch.temperatures_BT[where])
        tokens = self._tokens(model, packed)
        chunk_tokens, losses = self.config.logprob_chunk_tokens, list[TokenLoss]()

        def slope(part: slice, logprobs_N: Tensor) -> Tensor:
            slope_N, loss = self._slope(logprobs_N, tokens.part(part))
            losses.append(loss)
            return slope_N

        hidden_ND = model.hidden(packed)
        by_chunk: Slope = slope
        if self.config.importance_sampling_level != "token":
            # A token's ratio is of its whole sequence, so every logprob is needed before the first slope.
            seen = score(model.head, hidden_ND, targets_N, temperatures_N, chunk_tokens)
            by_chunk = _settled(slope(slice(None), seen.logprobs_N))
        asked = (targets_N, temperatures_N)
        scores, gradient_ND = score_with_gradient(model.head, hidden_ND, *asked, by_chunk, chunk_tokens)
        torch.autograd.backward(hidden_ND, gradient_ND)
        tally.add(packed, scores, losses)

    def _tokens(self, model: PassModel, packed: Pass) -> Tokens:
        where = (packed.rows_N, packed.columns_N)
        engine_BT = np.where(np.isnan(self.batch.logprobs_BT), self.signal.own_logprobs_BT, self.batch.logprobs_BT)
        corrected = self.config.truncated_importance_sampling is not None
        return Tokens(
            old_logprobs_N=model.to_device(self.signal.old_logprobs_BT[where]),
            advantages_N=model.to_device(self.signal.advantages_BT[where]),
            sequences_N=model.to_device(np.unique(packed.rows_N, return_inverse=True)[1]),
            engine_logprobs_N=model.to_device(engine_BT[where]) if corrected else None,
        )

    def _slope(self, logprobs_N: Tensor, tokens: Tokens) -> tuple[Tensor, TokenLoss]:
        """Derivative of the update's loss by each logprob."""
        with torch.enable_grad():
            leaf_N = logprobs_N.detach().requires_grad_()
            loss = policy_loss(leaf_N, tokens, self.config)
            (slope_N,) = torch.autograd.grad(loss.loss_N.sum() / self.loss_tokens, leaf_N)
        return slope_N, loss


def _settled(slope_N: Tensor) -> Slope:
    return lambda part, _: slope_N[part]


def objectives(batch: TrainBatch, signal: Signal, config: StepConfig) -> Iterator[Objective]:
    """The updates of a step, in order; one that could teach nothing is left out.

    Args:
        batch: All rows.
        signal: What they teach.
        config: `update_sequences` rows go into an update, in the order of the batch; None: all.
    """
    place_B = np.arange(len(batch.lengths_B))
    size = config.update_sequences or len(place_B)
    rates = config.update_learning_rates
    for number, start in enumerate(range(0, len(place_B), size)):
        own = config if rates is None else replace(config, learning_rate=rates[number])
        made = Objective(batch, signal, own, (place_B >= start) & (place_B < start + size))
        if made.scored_BT.any():
            yield made
