"""An engine and a trainer in this process, for victims that must come up in milliseconds.

Real around them: run directory, manifest, store, publisher with its weight proof, route, gateway, recovery, loop. What
they do not prove: anything of a trainer's or an engine's own process, of how they write or read files, or of learning.
Those are struck too, in fewer kills, by the real parts (`life`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from art_core import disk
from art_core.base_model import BaseIdentity, ModelInfo
from art_core.batch import TrainBatch
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER
from art_core.compose import Parts
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.protocols.store import CheckpointStore
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import Probe, StepConfig, StepResult
from tests.art_core.builtin.numpy_engine import ALPHA, RANK, VOCAB, WIDTH, Bigram, NumpyEngine, Slot, slot_of

MODEL = ModelInfo(BaseIdentity(name="bigram", digest="0"), VOCAB, 64, None, "float32")
PROVES = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})
MOMENTUM = 0.9


class SmallEngine(NumpyEngine):
    """Starts at once; nobody listens at its address, because nobody samples."""

    async def start(self, spec: EngineSpec) -> Endpoint:
        self.slots.clear()
        self.paths.clear()
        self.dead = False
        return Endpoint("http://127.0.0.1:9", "key", MODEL, 3)


class SmallTrainer:
    """Momentum over pseudo-gradients that depend on weights and batch, so that any state that is lost shows.

    Stands in for `TrainerWorker`, whose process it does without.
    """

    alive = True

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        if resume_from is None:
            rng = np.random.default_rng(spec.lora.random_state)
            a = rng.normal(0, 0.3, (RANK, WIDTH)).astype(np.float32)
            self.weights: Slot = {"A": a, "B": np.zeros((VOCAB, RANK), np.float32)}
            self.velocity = {name: np.zeros_like(tensor) for name, tensor in self.weights.items()}
        else:
            self.weights, self.velocity = load_file(resume_from / ADAPTER), load_file(resume_from / OPTIMIZER)
        return TrainerInfo(MODEL, {"numpy": np.__version__})

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        before = dict(self.weights)
        data = b"".join(array.tobytes() for array in (*self.weights.values(), *batch.arrays().values()))
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(data).digest(), np.uint32))
        for name, weight in before.items():
            gradient = rng.normal(0, 1, weight.shape).astype(np.float32)
            self.velocity[name] = np.float32(MOMENTUM) * self.velocity[name] + gradient
            self.weights[name] = weight - np.float32(config.learning_rate) * self.velocity[name]
        return StepResult({"loss/train": 0.0}, self._probe(batch, before), updated=True)

    async def save(self, directory: Path) -> None:
        with disk.disk_errors("save the step"):
            disk.write(directory / ADAPTER, save(self.weights))
            disk.write(directory / OPTIMIZER, save(self.velocity))
            disk.write(directory / ADAPTER_CONFIG, f'{{"r": {RANK}, "lora_alpha": {ALPHA}}}'.encode())

    async def stop(self) -> None: ...

    def _probe(self, batch: TrainBatch, before: Slot) -> Probe:
        model = Bigram("float32")
        tokens = tuple(batch.tokens_BT[i, : batch.lengths_B[i]] for i in range(2))
        scored = tuple(batch.loss_mask_BT[i, : batch.lengths_B[i]] for i in range(2))

        def answers(weights: Slot) -> tuple[NDArray[np.float32], ...]:
            slot = slot_of(weights, ALPHA / RANK, "float32")
            return tuple(model.logprobs(each, slot) for each in tokens)

        return Probe(tokens, scored, answers(before), answers(self.weights))


def small_parts(store: CheckpointStore | None = None) -> Parts:
    """Four parts, not started; steps are copied to the store."""
    engine = SmallEngine()
    publisher = ReloadPublisher(ReloadOptions(), engine, PROVES)
    return Parts(engine, "small", PROVES, cast(Any, SmallTrainer()), "small", Capabilities(), store, publisher)
