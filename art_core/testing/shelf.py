"""Checkpoints for a test: staged and stored by core's own functions, around adapters that the kit writes."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from art_core.base_model import BaseIdentity, base_digest
from art_core.checkpoint import DROPPED, OPTIMIZER, PROBE, Checkpoint, StoredCheckpoint, write_manifest
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.step import Probe
from art_core.testing.adapter import AdapterShape, write_adapter


class Shelf:
    """One run of stored adapters, a step each.

    Args:
        run: The run's directory.
        base_model: Directory of a llama-like base model.
    """

    def __init__(self, run: Path, base_model: Path) -> None:
        self.run = run
        self._base_model = base_model
        self._identity = BaseIdentity(name=str(base_model), digest=base_digest(base_model))
        self._next = 0

    def beside(self, name: str) -> Shelf:
        """Another run of the same base model on this machine.

        Args:
            name: Its name.
        """
        run = self.run.parent / uuid.uuid4().hex / name
        run.mkdir(parents=True)
        return Shelf(run, self._base_model)

    async def store(self, shape: AdapterShape) -> StoredCheckpoint:
        """Store an adapter as the next step."""
        step, self._next = self._next, self._next + 1
        checkpoint = await asyncio.to_thread(self.stage, step, shape)
        return await LocalStore().commit(self.run, checkpoint)

    def stage(self, step: int, shape: AdapterShape, probe: Probe | None = None) -> Checkpoint:
        """Stage an adapter as a step; the same arguments give the same files."""
        directory = RunDirectory(self.run).stage()
        write_adapter(self._base_model, directory, shape)
        moments = np.random.default_rng(shape.seed).normal(size=1 << 14).astype(np.float32)
        save_file({"exp_avg": moments}, directory / OPTIMIZER)
        if step:
            (probe or _probe(shape.seed)).write(directory / PROBE)
        return write_manifest(
            directory,
            run=self.run.name,
            step=step,
            base_model=self._identity,
            parent=step - 1 if step else None,
            metrics={"loss/train": 0.25},
            versions={"numpy": np.__version__},
        )


def drop_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """Take a staged checkpoint's optimizer state away, as a retention policy does with a stored one's."""
    (checkpoint.directory / (OPTIMIZER + DROPPED)).write_bytes(b"")
    (checkpoint.directory / OPTIMIZER).unlink()
    return checkpoint


def measured_anew(checkpoint: Checkpoint) -> Checkpoint:
    """A staged checkpoint's content under a manifest of other metrics and versions, as a retry of a step writes it."""
    manifest = checkpoint.manifest
    return write_manifest(
        checkpoint.directory,
        run=manifest.run,
        step=manifest.step,
        base_model=manifest.base_model,
        parent=manifest.parent,
        metrics={"time/step_s": 7.5},
        versions={"numpy": "0"},
    )


def _probe(seed: int) -> Probe:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 100, 6).astype(np.int32)
    scored = np.arange(6) > 2
    before = np.where(scored, rng.normal(-5, 1, 6), 0).astype(np.float32)
    return Probe((tokens,), (scored,), (before,), (before * np.float32(0.5),))
