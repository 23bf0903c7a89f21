"""Streams under way while step after step is published: none fails, none is cut, each keeps the step it began with."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from art_vllm.engine import VllmEngine
from art_vllm.options import VllmOptions
from art_vllm.plugin import capabilities

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Timeouts
from art_core.gateway import Gateway
from art_core.policy import ProofKind
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.route import RouteTable
from art_core.testing.adapter import AdapterShape
from art_core.testing.shelf import Shelf

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

DRIFT_BYTES = 64 << 20
WARM = 0.3
"""Part of the publications after which memory may not grow any more."""


@dataclass
class Streamed:
    """One answer as its client saw it."""

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

    async def publish(self, step: int, strength: float) -> None:
        stored = await self.shelf.store(AdapterShape(step, rank=8, strength=strength))
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


async def stream(client: httpx.AsyncClient, seed: int, max_tokens: int) -> Streamed:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"Count to {seed}."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    seen = Streamed()
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


async def run(line: Line, streams: int, steps: int, max_tokens: int, strength: float) -> list[Streamed]:
    """Publish `steps` steps while `streams` streams run without a pause; what all of them saw."""
    answers: list[Streamed] = []
    done = asyncio.Event()
    headers = {"Authorization": f"Bearer {line.gateway.api_key}"}
    limits = httpx.Limits(max_connections=None)

    async def client(number: int, http: httpx.AsyncClient) -> None:
        while not done.is_set():
            answers.append(await stream(http, number, max_tokens))

    async with httpx.AsyncClient(base_url=line.gateway.base_url, headers=headers, timeout=600, limits=limits) as http:
        clients = [asyncio.ensure_future(client(number, http)) for number in range(streams)]
        warm = 0
        for step in range(1, steps + 1):
            await line.publish(step, strength)
            if step == max(2, int(steps * WARM)):
                warm = line.resident_bytes()
        done.set()
        await asyncio.gather(*clients)
    drift = line.resident_bytes() - warm
    assert drift <= DRIFT_BYTES, f"{drift / 2**20:.1f} MiB"
    return answers


async def check(line: Line, answers: list[Streamed], max_tokens: int, sample: int) -> None:
    assert all(each.whole and each.finish == "length" for each in answers)
    assert all(len(each.tokens) == len(each.logprobs) == max_tokens for each in answers)
    assert all(len(each.models) == 1 for each in answers)
    assert len({name for each in answers for name in each.models}) > 2
    assert line.most <= line.endpoint.max_adapters
    for name in (await line.engine.health()).adapters:
        await line.engine.unload_adapter(name)
    for seen in random.Random(1).sample(answers, min(sample, len(answers))):
        step = int(next(iter(seen.models)).rpartition("@")[2])
        await line.engine.load_adapter("check@1", line.stored[step])
        sequence = np.asarray(seen.prompt + seen.tokens, np.int32)
        row = (await line.engine.score("check@1", [sequence]))[0][len(seen.prompt) :]
        assert np.abs(row - np.asarray(seen.logprobs)).max() <= 1e-3, step
        await line.engine.unload_adapter("check@1")


async def a_line(options: VllmOptions, model: Path, root: Path) -> AsyncIterator[Line]:
    engine = VllmEngine(options, capabilities(options))
    endpoint = await engine.start(EngineSpec(str(model), "base", 8, root / "engine.log"))
    line = Line(engine, endpoint, Shelf(root / "run", model), options)
    line.gateway.start()
    try:
        yield line
    finally:
        line.gateway.close()
        await engine.stop()


async def test_64_streams_while_100_steps_are_published(
    vllm_options: VllmOptions, vllm_model: Path, tmp_path: Path
) -> None:
    # a cache of keys and values so small that the warm-up has written every page of it: the system gives a page when
    # it is first written, which in a larger one would look like growth for as long as the test runs
    small = vllm_options.model_copy(update={"max_num_seqs": 64, "cpu_kv_cache_gib": 1 / 32})
    async for line in a_line(small, vllm_model, tmp_path):
        await line.publish(0, 0.2)
        answers = await run(line, streams=64, steps=100, max_tokens=48, strength=0.2)
        await check(line, answers, 48, sample=24)


async def test_8_streams_of_a_real_model_while_10_steps_are_published(
    vllm_options: VllmOptions, real_model: Path, tmp_path: Path
) -> None:
    larger = vllm_options.model_copy(update={"cpu_kv_cache_gib": 1.0})
    async for line in a_line(larger, real_model, tmp_path):
        await line.publish(0, 0.01)
        answers = await run(line, streams=8, steps=10, max_tokens=24, strength=0.01)
        await check(line, answers, 24, sample=6)
