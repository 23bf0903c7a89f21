"""Training batches of random tokens: valid for any base model, and deterministic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from art_core.base_model import ModelInfo
from art_core.batch import TrainBatch


@dataclass(frozen=True)
class BatchShape:
    """How large a batch is; the seed decides its values."""

    seed: int = 0
    groups: int = 2
    sequences_per_group: int = 3
    prompt_tokens: int = 8
    completion_tokens: int = 12


def make_batch(model: ModelInfo, shape: BatchShape) -> TrainBatch:
    """Groups that share a prompt each, completions of unequal length, other temperatures than 1, a tool's output.

    Args:
        model: Whose vocabulary the tokens are of.
        shape: Size and seed.
    """
    rng = np.random.default_rng(shape.seed)
    each, prompt = shape.sequences_per_group, shape.prompt_tokens
    B, T = shape.groups * each, prompt + shape.completion_tokens
    tokens_BT = rng.integers(0, model.vocab_size, (B, T)).astype(np.int32)
    lengths_B = rng.integers(prompt + 4, T + 1, B).astype(np.int32)
    group_ids_B = np.repeat(np.arange(shape.groups), each).astype(np.int32)
    tokens_BT[:, :prompt] = tokens_BT[group_ids_B * each, :prompt]
    column_T = np.arange(T)
    mask_BT = (column_T >= prompt) & (column_T < lengths_B[:, None])
    mask_BT[:, prompt + 2] = False
    tokens_BT[column_T >= lengths_B[:, None]] = 0
    logprobs_BT = rng.normal(-math.log(model.vocab_size), 0.3, (B, T))
    return TrainBatch(
        tokens_BT=tokens_BT,
        loss_mask_BT=mask_BT,
        logprobs_BT=np.where(mask_BT, logprobs_BT, 0).astype(np.float32),
        advantages_BT=np.where(mask_BT, rng.normal(size=(B, 1)), 0).astype(np.float32),
        policy_steps_BT=np.where(mask_BT, 0, -1).astype(np.int32),
        temperatures_BT=np.where(mask_BT, rng.choice([0.7, 1.0, 1.3], (B, 1)), 1).astype(np.float32),
        lengths_B=lengths_B,
        group_ids_B=group_ids_B,
        trajectory_ids_B=np.arange(B, dtype=np.int32),
    )


def with_advantages(batch: TrainBatch, factor: float) -> TrainBatch:
    """The batch with its advantages multiplied."""
    return replace(batch, advantages_BT=batch.advantages_BT * np.float32(factor))


def with_token(batch: TrainBatch, token: int) -> TrainBatch:
    """The batch with one sampled token replaced."""
    tokens_BT = batch.tokens_BT.copy()
    tokens_BT[tuple(np.argwhere(batch.loss_mask_BT)[0])] = token
    return replace(batch, tokens_BT=tokens_BT)
