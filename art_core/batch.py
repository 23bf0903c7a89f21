"""Stage 2's result: what a trainer learns from in one step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from art_core.errors import BatchError


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
    """Natural-log probability under the distribution that was sampled, i.e. at `temperatures_BT`."""
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
                raise BatchError(
                    f"{field.name} is {array.dtype}{array.shape}; expected {DTYPES[field.name]}{shape}"
                )
        if B < 1:
            raise BatchError("the batch has no sequence")
        if not (np.isfinite(self.logprobs_BT).all() and np.isfinite(self.advantages_BT).all()):
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
