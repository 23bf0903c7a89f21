"""Batches and small readings that the trainer's tests share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from art_torch.options import TorchTrainerOptions
from art_torch.trainer import TorchTrainer

from art_core.batch import TrainBatch
from art_core.config import LoRAConfig
from art_core.protocols.trainer import TrainerSpec

PROMPT_TOKENS = 9
LORA = LoRAConfig(rank=4, alpha=8.0)


def make_batch(seed: int = 0, groups: int = 3, rows_per_group: int = 3, vocab: int = 256) -> TrainBatch:
    """Groups that share a prompt each, completions of unequal length, temperatures other than 1, off-policy logprobs.

    Within each group the first two completions begin with the same sampled token, so that the shared prefix reaches
    into what was sampled.
    """
    rng = np.random.default_rng(seed)
    B, T = groups * rows_per_group, PROMPT_TOKENS + 14
    tokens_BT = rng.integers(0, vocab, (B, T)).astype(np.int32)
    lengths_B = rng.integers(PROMPT_TOKENS + 4, T + 1, B).astype(np.int32)
    group_ids_B = np.repeat(np.arange(groups), rows_per_group).astype(np.int32)
    for group in range(groups):
        first = group * rows_per_group
        tokens_BT[first : first + rows_per_group, :PROMPT_TOKENS] = tokens_BT[first, :PROMPT_TOKENS]
        tokens_BT[first : first + rows_per_group, PROMPT_TOKENS] = tokens_BT[first, PROMPT_TOKENS]
    column_T = np.arange(T)
    mask_BT = (column_T >= PROMPT_TOKENS) & (column_T < lengths_B[:, None])
    mask_BT[:, PROMPT_TOKENS + 2] = False  # a tool's output between two sampled stretches
    tokens_BT[column_T >= lengths_B[:, None]] = 0
    return TrainBatch(
        tokens_BT=tokens_BT,
        loss_mask_BT=mask_BT,
        logprobs_BT=np.where(mask_BT, rng.normal(-5.5, 0.5, (B, T)), 0).astype(np.float32),
        advantages_BT=np.where(mask_BT, rng.normal(size=(B, 1)), 0).astype(np.float32),
        policy_steps_BT=np.where(mask_BT, 0, -1).astype(np.int32),
        temperatures_BT=np.where(mask_BT, rng.choice([0.7, 1.0, 1.3], (B, 1)), 1).astype(np.float32),
        lengths_B=lengths_B,
        group_ids_B=group_ids_B,
        trajectory_ids_B=np.arange(B, dtype=np.int32),
    )


def spec(model: Path, lora: LoRAConfig = LORA) -> TrainerSpec:
    return TrainerSpec(str(model), lora)


async def started(model: Path, resume_from: Path | None = None) -> TorchTrainer:
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu"))
    await trainer.start(spec(model), resume_from)
    return trainer


async def saved(trainer: TorchTrainer, directory: Path) -> Path:
    directory.mkdir()
    await trainer.save(directory)
    return directory


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
