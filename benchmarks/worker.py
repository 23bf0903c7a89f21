"""What a training step costs because the trainer lives in a process of its own: a batch there, a result back.

Makes the same calls on a trainer that does nothing, in a worker process and in this one, in turns, and reports the
difference. The batch has about 1 MB (`--megabytes`), as random tokens, masks, log-probabilities and advantages; the
probe that comes back is a fixed 2 sequences of it. Training, saving and starting are outside.

    python benchmarks/worker.py [--megabytes 1] [--steps 50] [--python INTERPRETER]

The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from art_core.base_model import BaseIdentity, ModelInfo
from art_core.batch import TrainBatch
from art_core.config import LoRAConfig, Timeouts
from art_core.protocols.trainer import Trainer, TrainerInfo, TrainerSpec
from art_core.step import Probe, StepConfig, StepResult
from art_core.worker import TrainerWorker

AIM_MS = 20.0
MODEL = ModelInfo(BaseIdentity(name="none", digest="0" * 64), 49152, 2048, chat_template=None, dtype="float32")


class IdleTrainer:
    """Answers at once."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Nothing to load."""
        return TrainerInfo(MODEL)

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """The first two sequences as the probe."""
        tokens = tuple(batch.tokens_BT[row, : batch.lengths_B[row]] for row in range(2))
        scored = tuple(batch.loss_mask_BT[row, : batch.lengths_B[row]] for row in range(2))
        logprobs = tuple(batch.logprobs_BT[row, : batch.lengths_B[row]] for row in range(2))
        return StepResult({"loss": 0.0}, Probe(tokens, scored, logprobs, logprobs), updated=True)

    async def save(self, directory: Path) -> None:
        """Nothing to save."""

    async def offload(self) -> None:
        """Nothing to do."""

    async def onload(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Time steps in both places, one of each in turn."""
    batch = sized(arguments.megabytes)
    spec = TrainerSpec("none", LoRAConfig())
    times_ms: dict[str, list[float]] = {"worker": [], "here": []}
    with tempfile.TemporaryDirectory() as root:
        log = Path(root) / "trainer.log"
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        worker = TrainerWorker("worker:IdleTrainer", {}, log, Timeouts(), {"PYTHONPATH": path}, arguments.python)
        trainers: dict[str, Trainer] = {"worker": worker, "here": IdleTrainer({})}
        for trainer in trainers.values():
            await trainer.start(spec, None)
        for round_ in range(arguments.steps + 3):
            for name, trainer in trainers.items():
                start = time.perf_counter()
                await trainer.step(batch, StepConfig())
                if round_ >= 3:  # the first ones warm up both processes
                    times_ms[name].append(1000 * (time.perf_counter() - start))
        await worker.stop()
    overhead_ms = np.array(times_ms["worker"]) - np.array(times_ms["here"])
    return {
        "benchmark": "worker",
        "batch_bytes": sum(array.nbytes for array in batch.arrays().values()),
        "steps": arguments.steps,
        "overhead_p50_ms": round(float(np.percentile(overhead_ms, 50)), 2),
        "overhead_p95_ms": round(float(np.percentile(overhead_ms, 95)), 2),
        "aim_ms": AIM_MS,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def sized(megabytes: float) -> TrainBatch:
    """A batch of about that size."""
    from art_core.testing.batch import BatchShape, make_batch  # here only: it wants pytest, which workers lack

    shape = BatchShape(groups=16, sequences_per_group=4)
    token_bytes = 4 + 1 + 4 + 4 + 4 + 4  # the six arrays that have a value for each token
    tokens = round(megabytes * 1e6 / token_bytes / shape.groups / shape.sequences_per_group)
    return make_batch(MODEL, replace(shape, completion_tokens=tokens - shape.prompt_tokens))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the worker, with the same art-core")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
