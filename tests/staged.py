"""A staged checkpoint of small random files: as a trainer leaves it, without a trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from art_core.base_model import BaseIdentity
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER, PROBE, Checkpoint, write_manifest
from art_core.file_record import FileRecord
from art_core.run import RunDirectory
from art_core.step import Probe

BASE = BaseIdentity(name="tiny", digest="0" * 64)
FILES = dict.fromkeys((ADAPTER, ADAPTER_CONFIG), FileRecord(size_bytes=1, sha256="0" * 64))
"""What a manifest lists at least, where nobody reads the files themselves."""


def write_step_files(directory: Path, seed: int) -> None:
    """Write the four files of a step; the same seed gives the same bytes."""
    random = np.random.default_rng(seed)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {f"{module}.lora_A.weight": (8, 32), f"{module}.lora_B.weight": (32, 8)}
    for name in (ADAPTER, OPTIMIZER):
        tensors = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        (directory / name).write_bytes(save(tensors))
    (directory / ADAPTER_CONFIG).write_text(f'{{"r": 8, "lora_alpha": 16.0, "seed": {seed}}}')
    tokens = random.integers(0, 100, 6).astype(np.int32)
    logprobs = random.standard_normal(6).astype(np.float32)
    Probe((tokens,), (np.arange(6) > 2,), (logprobs,), (logprobs * 2,)).write(directory / PROBE)


def stage_step(run: Path, step: int, seed: int | None = None) -> Checkpoint:
    """Stage a step of a run; `seed` (default: the step) decides its content."""
    directory = RunDirectory(run).stage()
    write_step_files(directory, step if seed is None else seed)
    return write_manifest(
        directory,
        run=run.name,
        step=step,
        base_model=BASE,
        parent=step - 1 if step else None,
        metrics={"loss/train": 0.25},
        versions={"torch": "2.13"},
    )
