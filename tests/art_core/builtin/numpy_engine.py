"""An engine and a trainer small enough to read: a bigram model with one LoRA pair, in numpy.

Real: adapters are safetensors files, a slot holds the cast and scaled tensors that answer, digests are sha256 over
the slot's bytes, logprobs are a softmax over logits that the slot takes part in. What it does not prove: that any
real engine reads, casts, packs or hashes its slots this way, or that its HTTP calls behave.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from art_core.base_model import BaseIdentity
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, PROBE, StoredCheckpoint, write_manifest
from art_core.errors import EngineError, EngineUnavailableError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from art_core.step import Probe

VOCAB, WIDTH, RANK, ALPHA = 48, 16, 4, 8.0
Float = NDArray[np.float32]
Slot = dict[str, Float]


def rounded(values: Float, dtype: str) -> Float:
    """Values as that type holds them; bfloat16 keeps the upper 16 bits, to nearest."""
    if dtype == "float32":
        return values.astype(np.float32)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


class Bigram:
    """Next-token logits are a row of ``E·(W + B·A)``."""

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(0)
        self.dtype = dtype
        self.embedding = rounded(rng.normal(0, 1, (VOCAB, WIDTH)).astype(np.float32), dtype)
        self.output = rounded(rng.normal(0, 0.5, (WIDTH, VOCAB)).astype(np.float32), dtype)

    def logprobs(self, tokens: NDArray[np.int32], slot: Slot) -> Float:
        """Entry t is about token t; entry 0 is 0."""
        hidden = self.embedding[tokens[:-1]]
        logits = rounded(hidden @ self.output + (hidden @ slot["A"].T) @ slot["B"].T, self.dtype).astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        each = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        picked = each[np.arange(len(tokens) - 1), tokens[1:]]
        return np.concatenate([[0.0], picked]).astype(np.float32)


def slot_of(files: Slot, scale: float, dtype: str) -> Slot:
    """What a checkpoint's tensors become in a slot: the scale folded into B, then the engine's type."""
    return {"A": rounded(files["A"], dtype), "B": rounded(files["B"] * np.float32(scale), dtype)}


def digest(slot: Slot) -> str:
    return hashlib.sha256(b"".join(slot[name].tobytes() for name in sorted(slot))).hexdigest()


class Run:
    """Writes a run's checkpoints: weights that walk at random, a probe scored in float32."""

    def __init__(self, root: Path, change: float) -> None:
        self.root = root
        self.change = change
        self.rng = np.random.default_rng(1)
        self.files: Slot = {
            "A": self.rng.normal(0, 0.3, (RANK, WIDTH)).astype(np.float32),
            "B": np.zeros((VOCAB, RANK), np.float32),
        }
        self.step = -1

    def train(self, *, updated: bool = True) -> StoredCheckpoint:
        """The next step; the first is step 0, equal to the base."""
        self.step += 1
        before = self.files
        if updated and self.step > 0:
            walk = {name: self.rng.normal(0, self.change, tensor.shape) for name, tensor in before.items()}
            self.files = {name: (before[name] + walk[name]).astype(np.float32) for name in before}
        directory = self.root / f"{self.step:04d}"
        directory.mkdir(parents=True)
        save_file(self.files, directory / ADAPTER)
        (directory / ADAPTER_CONFIG).write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
        parent = self.step - 1 if self.step else None
        if parent is not None:
            self._probe(before).write(directory / PROBE)
        base = BaseIdentity(name="bigram", digest="0")
        checkpoint = write_manifest(
            directory, run="run", step=self.step, base_model=base, parent=parent, updated=updated
        )
        return StoredCheckpoint(checkpoint.directory, checkpoint.manifest)

    def _probe(self, before: Slot) -> Probe:
        model = Bigram("float32")
        tokens = [self.rng.integers(0, VOCAB, size).astype(np.int32) for size in (33, 32)]
        scored = [np.arange(len(each)) > 0 for each in tokens]
        old, new = (slot_of(files, ALPHA / RANK, "float32") for files in (before, self.files))
        return Probe(
            tuple(tokens),
            tuple(scored),
            tuple(model.logprobs(each, old) for each in tokens),
            tuple(model.logprobs(each, new) for each in tokens),
        )


@dataclass
class NumpyEngine:
    """Keeps the engine's contract; subclasses break one promise each."""

    dtype: str = "float32"
    slots: dict[str, Slot] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    dead: bool = False

    def __post_init__(self) -> None:
        self.model = Bigram(self.dtype)

    def read(self, directory: Path) -> Slot:
        """The slot that a checkpoint directory becomes."""
        config = json.loads((directory / ADAPTER_CONFIG).read_text())
        return slot_of(load_file(directory / ADAPTER), config["lora_alpha"] / config["r"], self.dtype)

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        """What really goes into the slot."""
        return self.read(checkpoint.directory)

    async def health(self) -> EngineHealth:
        if self.dead:
            raise EngineUnavailableError("the engine has died")
        return EngineHealth(dict(self.paths), 0)

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        if self.dead:
            raise EngineUnavailableError("the engine has died")
        if name in self.slots:
            raise EngineError(f"{name} is taken")
        self.slots[name] = self.fill(name, checkpoint)
        self.paths[name] = checkpoint.directory
        return LoadedAdapter(name, digest(self.slots[name]), digest(self.read(checkpoint.directory)))

    async def unload_adapter(self, name: str) -> None:
        if self.dead:
            raise EngineUnavailableError("the engine has died")
        self.slots.pop(name, None)
        self.paths.pop(name, None)

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]]) -> list[Float]:
        return [self.model.logprobs(tokens, self.slots[name]) for tokens in sequences]

    async def start(self, spec: EngineSpec) -> Endpoint:
        raise NotImplementedError

    async def sleep(self, level: int) -> None:
        raise NotImplementedError

    async def wake(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self.dead = True


class NoOpLoad(NumpyEngine):
    """Says yes and lists the name, but the newest slot goes on answering for it."""

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        return next(reversed(self.slots.values())) if self.slots else super().fill(name, checkpoint)


class PreviousStep(NumpyEngine):
    """Reads the parent's files."""

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        parent = checkpoint.manifest.parent or 0
        return self.read(checkpoint.directory.parent / f"{parent:04d}")


class AnotherStep(NumpyEngine):
    """Reads the files of the step before the parent."""

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        step = checkpoint.step - 2 if checkpoint.step >= 2 else checkpoint.step
        return self.read(checkpoint.directory.parent / f"{step:04d}")


class BaseServed(NumpyEngine):
    """The adapter's name answers, with the base model: B stays zero."""

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        slot = super().fill(name, checkpoint)
        return slot if checkpoint.step < 2 else {**slot, "B": np.zeros_like(slot["B"])}


class WrongScale(NumpyEngine):
    """Forgets alpha / rank from step 2 on."""

    def fill(self, name: str, checkpoint: StoredCheckpoint) -> Slot:
        slot = super().fill(name, checkpoint)
        return slot if checkpoint.step < 2 else {**slot, "B": slot["B"] * np.float32(RANK / ALPHA)}


BROKEN = (NoOpLoad, PreviousStep, AnotherStep, BaseServed, WrongScale)
