"""Which batches the trainer lets in: what the model or the step can't take is refused before any work."""

from __future__ import annotations

import numpy as np

from art_core.base_model import ModelInfo
from art_core.batch import TrainBatch
from art_core.errors import BatchError
from art_core.step import StepConfig


def require_fit(batch: TrainBatch, config: StepConfig, model: ModelInfo) -> None:
    """Refuse a batch that does not fit.

    Args:
        batch: What to learn from.
        config: Says whether logprobs may be missing.
        model: Vocabulary and context.

    Raises:
        BatchError: It does not fit; names the sequence, the value seen and what is allowed.
    """
    T = batch.tokens_BT.shape[1]
    longest, limit = int(batch.lengths_B.max()), model.context_tokens
    if longest > limit:
        row = int(batch.lengths_B.argmax())
        raise BatchError(f"sequence {row} has {longest} tokens; the context of this base model is {limit}")
    if longest > T or int(batch.lengths_B.min()) < 1:
        raise BatchError(f"lengths are {batch.lengths_B.min()} to {longest}; allowed: 1 to {T}, the padded length")
    present_BT = np.arange(T) < batch.lengths_B[:, None]
    if (batch.loss_mask_BT & ~present_BT).any():
        raise BatchError("the loss mask covers padding; only tokens within a sequence's length can be sampled")
    wrong_BT = present_BT & ((batch.tokens_BT < 0) | (batch.tokens_BT >= model.vocab_size))
    if wrong_BT.any():
        row, column = np.argwhere(wrong_BT)[0].tolist()
        raise BatchError(
            f"token {column} of sequence {row} is {batch.tokens_BT[row, column]}; "
            f"allowed: 0 to {model.vocab_size - 1}, this base model's vocabulary"
        )
    if batch.tokens_without_logprob and not config.allow_training_without_logprobs:
        row, column = np.argwhere(np.isnan(batch.logprobs_BT))[0].tolist()
        raise BatchError(
            f"token {column} of sequence {row} was sampled and has no logprob; "
            f"set allow_training_without_logprobs to take it as sampled by the present weights"
        )
    updates = -(-len(batch.lengths_B) // (config.update_sequences or len(batch.lengths_B)))
    if config.update_learning_rates is not None and len(config.update_learning_rates) != updates:
        raise BatchError(
            f"update_learning_rates has {len(config.update_learning_rates)} values; the step has {updates} updates"
        )
