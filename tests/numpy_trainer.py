"""A trainer of a few numpy arrays, to drive the worker process without torch.

It proves how calls, arrays, errors, cancellation and death cross the process boundary. It does not prove anything
about learning, memory, a real trainer's cancellation at a microbatch, or how a heavy import behaves in the child.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from art_core.base_model import BaseIdentity, ModelInfo
from art_core.batch import TrainBatch
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER
from art_core.config import LoRAConfig
from art_core.errors import NonFiniteLossError, TrainerError
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import Probe, StepConfig, StepResult


class NumpyTrainer:
    """Adds the learning rate to one weight per step; the learning rate's value also asks for mischief."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.weight = np.zeros(4, np.float32)
        self.steps, self.cancelled = 0, 0

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Take the spec, or fail as the options ask."""
        if self.options.get("fail_start"):
            raise TypeError("no such kernel")
        if self.options.get("slow_start"):
            print("loading", flush=True)
            signal.pause()
        self.steps, self.cancelled = 0, 0
        self.weight = load_file(resume_from / ADAPTER)["weight"] if resume_from else np.zeros(4, np.float32)
        identity = BaseIdentity(name=spec.base_model, digest="d" * 64)
        model = ModelInfo(identity, 100, 512, chat_template=spec.chat_template, dtype="float32")
        return TrainerInfo(model, {"spec": repr(spec), "pid": str(os.getpid())})

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """One step, or the mischief that `MISCHIEF` names for this learning rate."""
        match MISCHIEF.get(config.learning_rate):
            case "wait":
                print("waiting", flush=True)
                await self._wait()
            case "block":
                print("waiting", flush=True)
                signal.pause()
            case "raise":
                raise NonFiniteLossError("loss is nan", stage="step", run="r", step=3)
            case "raise foreign":
                raise ZeroDivisionError("by zero")
            case "log":
                logging.getLogger("art.numpy").info("ours, é")
                logging.getLogger("library").info("chatter")
                logging.getLogger("library").warning("theirs")
                logging.getLogger("library").error("x" * 5000)
                logging.getLogger("art.numpy").info("last")
            case "flood":
                for number in range(5000):
                    logging.getLogger("art.numpy").info("%d %s", number, "x" * 900)
            case "exit":
                print("farewell", file=sys.stderr, flush=True)
                os._exit(3)
        self.steps += 1
        self.weight += np.float32(config.learning_rate)
        tokens = tuple(batch.tokens_BT[i, : batch.lengths_B[i]] for i in range(2))
        scored = tuple(batch.loss_mask_BT[i, : batch.lengths_B[i]] for i in range(2))
        logprobs = tuple(batch.logprobs_BT[i, : batch.lengths_B[i]] for i in range(2))
        metrics = {"third": 1 / 3, "sum": float(sum(int(a.sum()) for a in (batch.tokens_BT, batch.lengths_B)))}
        metrics |= {"steps": self.steps, "cancelled": self.cancelled, "numpy": np.float32(0.1)}
        return StepResult(metrics, Probe(tokens, scored, logprobs, tuple(a * 2 for a in logprobs)), updated=True)

    async def _wait(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(20):  # as one that ends its microbatch first
                await asyncio.sleep(0.01)
            self.cancelled += 1
            raise

    async def save(self, directory: Path) -> None:
        """Write the three files."""
        if not directory.is_dir():
            raise TrainerError(f"{directory} is no directory")
        save_file({"weight": self.weight}, directory / ADAPTER)
        self._block("save")
        save_file({"steps": np.array(self.steps)}, directory / OPTIMIZER)
        (directory / ADAPTER_CONFIG).write_text(json.dumps(self.options))

    async def offload(self) -> None:
        """Nothing to do."""
        self._block("offload")

    async def onload(self) -> None:
        """Nothing to do."""
        self._block("onload")

    def _block(self, call: str) -> None:
        if self.options.get("block_in") == call:
            print("waiting", flush=True)
            signal.pause()

    async def stop(self) -> None:
        """Say so in the log."""
        print("stopped", flush=True)


MISCHIEF = {
    0.5: "wait",
    0.25: "block",
    0.125: "raise",
    0.0625: "raise foreign",
    0.03125: "exit",
    2**-6: "log",
    2**-7: "flood",
}
"""Learning rates (exact in binary) that ask for something else than a step."""
ASKING = {word: rate for rate, word in MISCHIEF.items()}

FACTORY = "tests.numpy_trainer:NumpyTrainer"
"""How a worker is told to host it."""
SPEC = TrainerSpec(
    "tiny", LoRAConfig(rank=4, alpha=0.1, target_modules=("q_proj", "k_proj")), (0, 1), chat_template="é {{ x }}"
)
"""A spec with every field set."""


def make_batch(sequences: int = 3, tokens: int = 7) -> TrainBatch:
    """A random valid batch; the same one each time."""
    random = np.random.default_rng(0)
    shape = (sequences, tokens)
    mask = random.random(shape) > 0.5
    mask[:, 0] = False
    return TrainBatch(
        tokens_BT=random.integers(0, 100, shape, np.int32),
        loss_mask_BT=mask,
        logprobs_BT=random.standard_normal(shape).astype(np.float32),
        advantages_BT=random.standard_normal(shape).astype(np.float32),
        policy_steps_BT=np.full(shape, -1, np.int32),
        temperatures_BT=np.ones(shape, np.float32),
        lengths_B=np.full(sequences, tokens, np.int32),
        group_ids_B=np.zeros(sequences, np.int32),
        trajectory_ids_B=np.arange(sequences, dtype=np.int32),
    )
