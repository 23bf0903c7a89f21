"""Stage 2's result: what a trainer learns from in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from art_core.advantage import Advantages, advantages
from art_core.errors import BatchError
from art_core.tokenization import Tokenization, TokenizationLimits, TokenizedSequence, tokenize
from art_core.trajectory import TrajectoryGroup

A = TypeVar("A", bound=np.generic)


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """B sequences padded at their end to T tokens.

    Entry t of a per-token array is about token t itself: its logprob is that of ``tokens[t]`` given
    ``tokens[:t]``. Where ``loss_mask_BT`` is False the token was not sampled by the policy (prompt, tool
    output, padding) and its logprob and advantage are 0.

    Sequences of one trajectory group share ``group_ids_B`` and usually a prefix: a trainer may compute that
    prefix once. Sequences whose advantages are all zero stay in the batch (a KL penalty still concerns
    them); a trainer without one may skip their forward pass, not their share of the token count.
    """

    tokens_BT: NDArray[np.int32]
    loss_mask_BT: NDArray[np.bool_]
    logprobs_BT: NDArray[np.float32]
    """Natural-log probability under the distribution that was sampled, i.e. at `temperatures_BT`; NaN where a sampled
    token came without one, which only a step with `allow_training_without_logprobs` may train on."""
    advantages_BT: NDArray[np.float32]
    policy_steps_BT: NDArray[np.int32]
    """Step of the policy that sampled the token; -1 where it was not sampled."""
    temperatures_BT: NDArray[np.float32]
    """Sampling temperature of the token; 1 where it was not sampled."""
    lengths_B: NDArray[np.int32]
    """Tokens of each sequence before padding."""
    group_ids_B: NDArray[np.int32]
    """Which group of the submitted list a sequence came from."""
    trajectory_ids_B: NDArray[np.int32]
    """Which trajectory, counted through all groups in the order submitted; several sequences may share one."""

    def __post_init__(self) -> None:
        B, T = self.tokens_BT.shape if self.tokens_BT.ndim == 2 else (-1, -1)
        for field in fields(self):
            array = getattr(self, field.name)
            shape = (B, T) if field.name.endswith("_BT") else (B,)
            if array.shape != shape or array.dtype != DTYPES[field.name]:
                raise BatchError(f"{field.name} is {array.dtype}{array.shape}; expected {DTYPES[field.name]}{shape}")
        if B < 1:
            raise BatchError("the batch has no sequence")
        known_BT = np.isfinite(self.logprobs_BT) | (np.isnan(self.logprobs_BT) & self.loss_mask_BT)
        if not (known_BT.all() and np.isfinite(self.advantages_BT).all()):
            raise BatchError("logprobs and advantages must be finite; the batch has a NaN or infinite one")
        if not (self.temperatures_BT > 0).all():
            raise BatchError("temperatures must be above 0")
        if self.loss_mask_BT[:, 0].any():
            raise BatchError("the first token of a sequence can't be sampled: nothing comes before it")

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that were sampled by the policy."""
        return int(self.loss_mask_BT.sum())

    @property
    def tokens_without_logprob(self) -> int:
        """Number of sampled tokens that came without a logprob."""
        return int(np.isnan(self.logprobs_BT).sum())

    @property
    def usable(self) -> bool:
        """Whether any sampled token has an advantage, i.e. whether there is anything to learn."""
        return bool((self.advantages_BT * self.loss_mask_BT != 0).any())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by field name, to be written as safetensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


DTYPES: dict[str, np.dtype[np.generic]] = {
    "tokens_BT": np.dtype(np.int32),
    "loss_mask_BT": np.dtype(np.bool_),
    "logprobs_BT": np.dtype(np.float32),
    "advantages_BT": np.dtype(np.float32),
    "policy_steps_BT": np.dtype(np.int32),
    "temperatures_BT": np.dtype(np.float32),
    "lengths_B": np.dtype(np.int32),
    "group_ids_B": np.dtype(np.int32),
    "trajectory_ids_B": np.dtype(np.int32),
}
"""The dtype of every field of `TrainBatch`."""


def make_batch(
    groups: Sequence[TrajectoryGroup],
    limits: TokenizationLimits,
    scale_rewards: bool = True,
    advantage_balance: float = 0.0,
) -> tuple[TrainBatch, dict[str, float]]:
    """Groups to what a trainer learns from: advantages from rewards, sequences from choices, padded.

    Every sampled token carries its trajectory's advantage, in all of the trajectory's sequences.

    Args:
        groups: What the agent did.
        limits: Vocabulary, context, policy steps, and whether logprobs may be missing.
        scale_rewards: See `art_core.advantage.group_advantages`.
        advantage_balance: See `art_core.advantage.balanced`.

    Returns:
        The batch, and metrics ``data/step_*`` and ``train/*``.

    Raises:
        TrajectoryError: A trajectory can't be trained on (which one, the value, what is allowed), or there is none.
        BatchError: The batch breaks its invariants.
    """
    advantage = advantages(groups, scale=scale_rewards, balance=advantage_balance)
    tokenization = tokenize(groups, limits)
    batch = pad(tokenization.sequences, advantage.trajectories)
    return batch, _metrics(groups, batch, advantage, tokenization, limits.current_step)


def pad(sequences: Sequence[TokenizedSequence], advantages_N: NDArray[np.float32]) -> TrainBatch:
    """Sequences as one batch.

    Args:
        sequences: At least one.
        advantages_N: Of each trajectory; all sampled tokens of its sequences get it.

    Raises:
        BatchError: The batch breaks its invariants.
    """
    lengths_B = np.asarray([len(s.tokens_T) for s in sequences], np.int32)
    trajectory_ids_B = np.asarray([s.trajectory_index for s in sequences], np.int32)
    T = int(lengths_B.max())
    loss_mask_BT = _stack([s.loss_mask_T for s in sequences], T, False)
    return TrainBatch(
        tokens_BT=_stack([s.tokens_T for s in sequences], T, 0),
        loss_mask_BT=loss_mask_BT,
        logprobs_BT=_stack([s.logprobs_T for s in sequences], T, 0),
        advantages_BT=np.where(loss_mask_BT, advantages_N[trajectory_ids_B, None], np.float32(0)),
        policy_steps_BT=_stack([s.policy_steps_T for s in sequences], T, -1),
        temperatures_BT=_stack([s.temperatures_T for s in sequences], T, 1),
        lengths_B=lengths_B,
        group_ids_B=np.asarray([s.group_index for s in sequences], np.int32),
        trajectory_ids_B=trajectory_ids_B,
    )


def _stack(rows: Sequence[NDArray[A]], T: int, padding: float) -> NDArray[A]:
    stacked_BT = np.full((len(rows), T), padding, rows[0].dtype)
    for b, row_T in enumerate(rows):
        stacked_BT[b, : len(row_T)] = row_T
    return stacked_BT


def _metrics(
    groups: Sequence[TrajectoryGroup],
    batch: TrainBatch,
    advantage: Advantages,
    tokenization: Tokenization,
    current_step: int,
) -> dict[str, float]:
    lag = current_step - batch.policy_steps_BT[batch.loss_mask_BT]
    trajectories = len(advantage.trajectories)
    exceptions = sum(len(group.exceptions) for group in groups)
    return {
        "data/step_num_groups": float(len(groups)),
        "data/step_num_groups_trainable": float(advantage.trainable_groups),
        "data/step_num_groups_zero_variance": float(advantage.zero_variance_groups),
        "data/step_num_groups_small": float(advantage.small_groups),
        "data/step_num_trajectories": float(trajectories),
        "data/step_num_sequences": float(len(batch.lengths_B)),
        "data/step_history_splits": float(tokenization.history_splits),
        "data/step_choices_without_policy_step": float(tokenization.unknown_policy_choices),
        "data/step_trainable_tokens": float(batch.loss_tokens),
        "data/step_tokens_without_logprob": float(batch.tokens_without_logprob),
        "data/step_policy_lag_mean": float(lag.mean()) if lag.size else 0.0,
        "data/step_policy_lag_max": float(lag.max()) if lag.size else 0.0,
        "train/reward": advantage.reward_mean,
        "train/reward_std_dev": advantage.reward_std_dev,
        "train/exception_rate": exceptions / (trajectories + exceptions),
    }
