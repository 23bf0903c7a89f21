"""What the gateway costs: added time to first token, and throughput at 16 streams, against the engine directly.

The engine is a scripted one in a process of its own: it streams 64 chunks of a chat completion with token ids and
logprobs, paced (one per 5 ms, as a fast engine does) or flat out (as none does: the gateway's own ceiling). The
gateway runs as in use, in a thread of this process; so does the client, which costs the same both ways. Requests
alternate between the two ways, so that a busy machine slows both. One warm-up of each is not counted.

    python benchmarks/gateway.py [--requests 200] [--rounds 15]

The last line of stdout is one JSON document. Times are milliseconds; ratios are gateway / direct; `cpu` is what the
gateway's thread itself used, which other load on the machine changes least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from art_core.base_model import BaseIdentity, ModelInfo
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, Manifest, StoredCheckpoint
from art_core.file_record import FileRecord
from art_core.gateway import Gateway
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.protocols.engine import Endpoint
from art_core.route import RouteTable
from art_core.server import ServerThread

CHUNKS = 64
STREAMS = 16
PACE_S = 0.005


def chunk(model: str) -> bytes:
    """One token as an engine sends it."""
    choice = {
        "index": 0,
        "delta": {"content": " token"},
        "logprobs": {"content": [{"token": " token", "logprob": -0.123456, "bytes": None, "top_logprobs": []}]},
        "finish_reason": None,
        "token_ids": [12345],
    }
    data = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def answer(request: Request) -> StreamingResponse:
    """Stream, at the pace that the request's `user` field asks for."""
    body = json.loads(await request.body())
    data, pace_s = chunk(body["model"]), float(body["user"])

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(body["max_tokens"]):
            yield data
            await asyncio.sleep(pace_s)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


def serve() -> None:
    """The engine's process: print the port, end with stdin."""
    server = ServerThread(Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])]), "engine")
    server.start(10)
    print(server.port, flush=True)
    sys.stdin.read()


async def first_and_all(client: httpx.AsyncClient, chunks_asked: int, pace_s: float) -> tuple[float, float]:
    """Seconds to the first byte of the answer's body, and to its end."""
    messages = [{"role": "user", "content": "Hi " * 500}]
    body = {"model": "agent@1", "messages": messages, "stream": True, "max_tokens": chunks_asked, "user": str(pace_s)}
    start = time.perf_counter()
    async with client.stream("POST", "/chat/completions", json=body) as response:
        chunks = response.aiter_raw()
        await anext(chunks)
        first = time.perf_counter() - start
        async for _ in chunks:
            pass
    return first, time.perf_counter() - start


async def first_token(ways: dict[str, httpx.AsyncClient], requests: int) -> dict[str, Any]:
    """One request at a time, of two chunks, alternating."""
    seen: dict[str, list[float]] = {way: [] for way in ways}
    cpu = gateway_cpu_s()
    for number in range(requests + 1):
        for way, client in ways.items():
            first, _ = await first_and_all(client, 2, PACE_S)
            if number:
                seen[way].append(first * 1e3)
    figures = {way: quantiles(values) for way, values in seen.items()}
    added = {f"added_{q}_ms": figures["gateway"][q] - figures["direct"][q] for q in ("p50", "p95")}
    cpu_ms = (gateway_cpu_s() - cpu) * 1e3 / (requests + 1)
    return {**{f"{way}_ms": each for way, each in figures.items()}, **added, "cpu_per_request_ms": cpu_ms}


async def throughput(ways: dict[str, httpx.AsyncClient], pace_s: float, rounds: int) -> dict[str, Any]:
    """Chunks per second of 16 streams at once; the ratio is the median of those of rounds made one after the other."""
    rate: dict[str, list[float]] = {way: [] for way in ways}
    first: dict[str, list[float]] = {way: [] for way in ways}
    cpu = gateway_cpu_s()
    for number in range(rounds + 1):
        for way, client in ways.items():
            start = time.perf_counter()
            seen = await asyncio.gather(*(first_and_all(client, CHUNKS, pace_s) for _ in range(STREAMS)))
            if number:
                rate[way].append(STREAMS * CHUNKS / (time.perf_counter() - start))
                first[way].extend(each * 1e3 for each, _ in seen)
    median = {way: statistics.median(values) for way, values in rate.items()}
    cpu_ms = (gateway_cpu_s() - cpu) * 1e3 / ((rounds + 1) * STREAMS * CHUNKS)
    return {
        "chunks_per_s": median,
        "cpu_per_chunk_ms": cpu_ms,
        "ratio": statistics.median(b / a for a, b in zip(rate["direct"], rate["gateway"], strict=True)),
        "first_token_ms": {way: quantiles(values) for way, values in first.items()},
    }


def gateway_cpu_s() -> float:
    """CPU seconds that the gateway's thread has used so far."""
    (ident,) = (each.ident for each in threading.enumerate() if each.name.startswith("art-gateway"))
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}


async def measure(base_url: str, gateway: Gateway, requests: int, rounds: int) -> dict[str, Any]:
    """All figures of one run."""
    key = {"authorization": f"Bearer {gateway.api_key}"}
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=f"{base_url}/v1", limits=limits, timeout=60) as direct,
        httpx.AsyncClient(base_url=gateway.base_url, limits=limits, timeout=60, headers=key) as through,
    ):
        ways = {"direct": direct, "gateway": through}
        return {
            "first_token": await first_token(ways, requests),
            "streams_16_paced": await throughput(ways, PACE_S, rounds),
            "streams_16_flat_out": await throughput(ways, 0, rounds),
        }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="requests one after another, each way")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of 16 streams, each way")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        serve()
        return
    command = [sys.executable, __file__, "--engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        base_url = f"http://127.0.0.1:{int(engine.stdout.readline())}"
        identity = BaseIdentity(name="scripted", digest="0")
        route = RouteTable("agent", "base")
        files = dict.fromkeys((ADAPTER, ADAPTER_CONFIG), FileRecord(size_bytes=1, sha256="0" * 64))
        stored = StoredCheckpoint(Path("/nowhere"), Manifest(run="run", step=1, base_model=identity, files=files))
        route.flip(PublishedPolicy("agent@1", stored, Proof(ProofKind.NONE)))
        gateway = Gateway(route, Endpoint(base_url, "key", ModelInfo(identity, 1, 1, None, "none"), 2))
        gateway.start()
        figures = asyncio.run(measure(base_url, gateway, arguments.requests, arguments.rounds))
        gateway.close()
        engine.communicate()
    load = os.getloadavg()[0]
    print(json.dumps({"benchmark": "gateway", "cores": os.cpu_count(), "load_1min": round(load, 1), **figures}))


if __name__ == "__main__":
    main()
