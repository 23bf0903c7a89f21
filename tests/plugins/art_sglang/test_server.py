"""What SGLang does that the contract forbids, each on the real server: one, on a CPU, for the whole file.

Requests that are not to end while they are looked at are held back by a plugin of SGLang's (`fault/`).
The base model lies where SGLang would guess another chat template, asks for another sampling than requests do, and has
a public name that SGLang would not take.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from art_sglang.engine import SglangEngine
from art_sglang.options import SglangOptions
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from art_core.checkpoint import OPTIMIZER, StoredCheckpoint
from art_core.config import Timeouts
from art_core.errors import CapabilityError, CheckpointCorruptError, EngineDiedError, EngineError
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.testing.adapter import AdapterShape, adaptable_modules, edit_config, edit_tensors
from art_core.testing.condition import NOTICED_S, until, within
from art_core.testing.family import descendants, survivors
from art_core.testing.shelf import Shelf
from tests.plugins.art_torch.engine_sample import Reference
from tests.plugins.life import LOOKS

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
BASE = "pypi:tiny"
END = 257
"""The stop token."""


@dataclass
class Server:
    """A started engine, and a client with its key."""

    engine: SglangEngine
    endpoint: Endpoint
    client: httpx.AsyncClient
    shelf: Shelf
    base: Path
    processes: list[psutil.Process]
    hold: Path
    """While this file exists, requests are taken in and none goes on."""

    async def load(self, name: str, seed: int = 1, **shape: Any) -> StoredCheckpoint:
        stored = await self.shelf.store(AdapterShape(seed, **shape))
        loaded = await self.engine.load_adapter(name, stored)
        assert loaded.slot_digest == loaded.expected_digest is not None
        return stored

    async def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        response = await self.client.post(path, json={"model": BASE, **body})
        assert response.status_code == status, response.text
        data: dict[str, Any] = response.json()
        return data

    async def chat(self, **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Hi"}]
        return await self.post("/v1/chat/completions", messages=messages, logprobs=True, return_token_ids=True, **body)

    async def stream(self, **body: Any) -> list[dict[str, Any]]:
        body = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, **body}
        body |= {"stream": True, "return_token_ids": True}
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    async def running(self, count: int) -> None:
        """Wait until it is at so many requests, none of which may be able to end by itself."""

        async def all_in() -> bool:
            return (await self.engine.health()).running_requests == count

        await until(all_in, f"{count} requests run")


@pytest.fixture(scope="module")
async def started(
    sglang_options: SglangOptions, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("server")
    base = Path(shutil.copytree(tiny_model, root / "vicuna-7b-v1.5"))
    generation = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**generation, "do_sample": True, "top_k": 1}))
    before = descendants().keys()
    engine = SglangEngine(sglang_options.model_copy(update={"max_loras": 3}))
    (root / "fault").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "fault"), prepend=os.pathsep)
        patch.setenv("ART_TEST_FAULT", str(root / "fault"))
        patch.setenv("ART_TEST_HOLD", str(root / "hold"))
        endpoint = await engine.start(EngineSpec(str(base), BASE, lora_rank=8, log_path=root / "engine.log"))
    processes = [process for pid, process in descendants().items() if pid not in before]
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=120) as client:
        yield Server(engine, endpoint, client, Shelf(root / "run", base), base, processes, root / "hold")
    await engine.stop()


@pytest.fixture
async def server(started: Server) -> Server:
    started.hold.unlink(missing_ok=True)
    await started.running(0)
    for name in (await started.engine.health()).adapters:
        await started.engine.unload_adapter(name)
    return started


async def test_scores_are_those_of_transformers_and_peft(server: Server) -> None:
    stored = {name: await server.load(name, seed, rank=rank) for name, seed, rank in (("a:b@1", 1, 4), ("c@2", 2, 8))}
    reference = Reference(server.base, {name: each.directory for name, each in stored.items()})
    sequences = [np.random.default_rng(n).integers(0, 256, n).astype(np.int32) for n in (1, 2, 40)]
    for name in (BASE, *stored):
        for tokens, got in zip(sequences, await server.engine.score(name, sequences), strict=True):
            rows = reference.logprobs(name, tokens.tolist())
            np.testing.assert_allclose(got[1:], rows[np.arange(len(rows)), tokens[1:]], atol=1e-4)


async def test_the_optimizer_beside_an_adapter_is_not_served(server: Server) -> None:
    """SGLang reads every safetensors file of a directory; the moments have the adapter's names in theirs."""
    stored = await server.shelf.store(AdapterShape(1))
    moments = {
        f"exp_avg.base_model.model.{name}.lora_{kind}.weight": np.ones(shape, np.float32)
        for name, (size_in, size_out) in adaptable_modules(server.base).items()
        for kind, shape in (("A", (4, size_in)), ("B", (size_out, 4)))
    }
    save_file(moments, stored.directory / OPTIMIZER)
    loaded = await server.engine.load_adapter("m@1", stored)
    assert loaded.slot_digest == loaded.expected_digest
    await server.load("alone@1", 1)
    rows = [await server.engine.score(name, [np.arange(20, dtype=np.int32)]) for name in ("m@1", "alone@1")]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    assert (await server.engine.health()).adapters["m@1"] == stored.directory


async def test_an_adapter_s_own_scale_and_modules_hold_however_they_are_written(server: Server) -> None:
    stored = await server.shelf.store(AdapterShape(1, rank=4, alpha=8))
    edit_config(stored.directory, use_rslora=True, target_modules=r".*\.(q|k|v|o|gate|up|down)_proj")
    loaded = await server.engine.load_adapter("rs@1", stored)
    assert loaded.slot_digest == loaded.expected_digest
    await server.load("plain@1", 1, rank=4, alpha=16)  # 8 / sqrt(4) = 16 / 4
    rows = [await server.engine.score(name, [np.arange(20, dtype=np.int32)]) for name in ("rs@1", "plain@1")]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])


async def test_q_without_v_is_refused_and_the_engine_lives(server: Server) -> None:
    stored = await server.shelf.store(AdapterShape(1))
    edit_tensors(stored.directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "v_proj" in name])
    with pytest.raises(CheckpointCorruptError, match="only together"):
        await server.engine.load_adapter("m@1", stored)
    stored = await server.shelf.store(AdapterShape(1))
    edit_tensors(stored.directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "k_proj" in name])
    loaded = await server.engine.load_adapter("m@1", stored)
    assert loaded.slot_digest == loaded.expected_digest


async def test_unloading_waits_for_nobody_and_holds_nobody_up(server: Server) -> None:
    """SGLang's own unload waits for the adapter's requests, and all loads wait for it."""
    await server.load("m@1", 1)
    server.hold.touch()
    running = asyncio.create_task(
        server.post("/v1/completions", model="m@1", prompt=[1, 2], max_tokens=40, ignore_eos=True)
    )
    await server.running(1)
    await server.engine.unload_adapter("m@1")
    await server.post("/v1/completions", 404, model="m@1", prompt=[1])
    await server.load("m@1", 2)
    await server.load("m@2", 3)
    with pytest.raises(EngineError, match="1 unloaded ones still answer"):
        await server.load("m@3", 4)
    server.hold.unlink()
    assert (await running)["usage"]["completion_tokens"] == 40
    await server.running(0)
    await server.load("m@3", 4)


async def test_tokens_that_would_end_the_scheduler_are_refused(server: Server) -> None:
    outside = {"prompt": [1, 258]}, {"prompt": [[1], [-1]]}, {"prompt": [1], "stop_token_ids": [10**6], "min_tokens": 2}
    for body in outside:
        error = (await server.post("/v1/completions", 400, **body))["error"]
        assert "allowed: 0 to 257" in error["message"]
    messages = [{"role": "user", "content": "Hi"}]
    await server.post("/v1/chat/completions", 400, messages=messages, input_ids=[300])
    await server.post("/v1/completions", 400, prompt=[1], max_tokens=-1)
    await server.post("/v1/completions", 400, prompt=[1] * 600, max_tokens=1)
    await server.post("/v1/completions", 400, prompt=[1], lora_path="m@1#1")
    with pytest.raises(EngineError, match="outside the vocabulary"):
        await server.engine.score(BASE, [np.array([258], np.int32)])
    assert (await server.post("/v1/completions", prompt=[1], max_tokens=1))["model"] == BASE


async def test_what_it_can_t_do_is_refused_and_not_passed_over(server: Server) -> None:
    """The template knows no tools; on a CPU there is no grammar for structured output."""
    messages, function = [{"role": "user", "content": "Hi"}], {"name": "f", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    error = await server.post("/v1/chat/completions", 400, messages=messages, tools=tools)
    assert "'tools' is not served" in error["error"]["message"]
    await server.chat(max_tokens=1, tools=tools, tool_choice="none")
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    error = await server.post("/v1/chat/completions", 400, messages=messages, response_format=schema, max_tokens=4)
    assert "not supported" in error["message"]


async def test_the_request_alone_says_how_to_sample(server: Server) -> None:
    """generation_config.json has top_k = 1, which would give one token twelve times."""
    answers = await asyncio.gather(*(server.chat(max_tokens=1, temperature=1.0) for _ in range(12)))
    assert len({answer["choices"][0]["token_ids"][0] for answer in answers}) > 1


async def test_prompts_are_made_with_the_model_s_own_template(server: Server) -> None:
    """The model's directory is called vicuna-7b-v1.5, from which SGLang takes a template of its own."""
    tokenizer = AutoTokenizer.from_pretrained(server.base)
    messages = [{"role": "user", "content": "Hi"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert (await server.chat(max_tokens=1))["prompt_token_ids"] == expected
    assert server.endpoint.model.chat_template == tokenizer.chat_template


async def test_streams_carry_every_token_also_those_without_text(server: Server) -> None:
    """The stop token adds no text, nor do a character's first bytes; SGLang drops their logprobs."""
    await server.load("m@1", 1)
    whole = await server.chat(model="m@1", temperature=0, max_tokens=24)
    chunks = await server.stream(model="m@1", temperature=0, max_tokens=24)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [token for each in choices for token in each["token_ids"]] == whole["choices"][0]["token_ids"]
    shown = [each["logprob"] for c in choices if c["logprobs"] for each in c["logprobs"]["content"]]
    expected = [each["logprob"] for each in whole["choices"][0]["logprobs"]["content"]]
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]

    stopped = await server.stream(n=2, max_tokens=9, logit_bias={str(END): 100})
    for index in (0, 1):
        mine = [c for chunk in stopped for c in chunk["choices"] if c["index"] == index]
        assert [token for each in mine for token in each["token_ids"]] == [END]
        assert sum(len(each["logprobs"]["content"]) for each in mine if each["logprobs"]) == 1
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == ["stop"]


async def test_several_choices_are_the_adapter_s(server: Server) -> None:
    await server.load("m@1", 1, strength=1.0)
    answer = await server.chat(model="m@1", n=3, max_tokens=6, temperature=1.0)
    assert answer["model"] == "m@1" and len(answer["choices"]) == 3
    for choice in answer["choices"]:
        sequence = np.array(answer["prompt_token_ids"] + choice["token_ids"], np.int32)
        scored = (await server.engine.score("m@1", [sequence]))[0][-len(choice["token_ids"]) :]
        sampled = [each["logprob"] for each in choice["logprobs"]["content"]]
        np.testing.assert_allclose(sampled, scored, atol=1e-3)
    await server.engine.unload_adapter("m@1")
    assert not (await server.engine.health()).running_requests


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_request(server: Server, stream: bool) -> None:
    """SGLang aborts what nobody reads: else unloading would wait for it without end."""
    await server.load("m@1", 1)
    server.hold.touch()
    body = {"model": "m@1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.endpoint.base_url, headers=server.client.headers) as leaving:
        call = asyncio.create_task(leaving.post("/v1/chat/completions", json={**body, "stream": stream}, timeout=60))
        await server.running(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    await server.running(0)
    await server.engine.unload_adapter("m@1")


async def test_there_are_no_administrative_routes_even_with_the_key(server: Server) -> None:
    for path in (
        "/load_lora_adapter",
        "/unload_lora_adapter",
        "/release_memory_occupation",
        "/update_weights_from_disk",
        "/flush_cache",
        "/generate",
        "/get_server_info",
        "/docs",
    ):
        for method in ("GET", "POST"):
            assert (await server.client.request(method, path, json={})).status_code == 404, path
    with pytest.raises(CapabilityError):
        await server.engine.sleep(1)


async def test_the_scheduler_s_death_is_the_engine_s_and_leaves_nothing(server: Server) -> None:
    """Comes last. SGLang itself would answer on for a while."""
    scheduler = next(each for each in server.processes if "scheduler" in " ".join(each.cmdline()))
    scheduler.suspend()
    answer = asyncio.create_task(server.chat(max_tokens=400, ignore_eos=True))
    await server.running(1)
    scheduler.kill()
    died = pytest.raises(EngineDiedError, match=r"a process of SGLang has ended")
    with within(NOTICED_S, "the scheduler's death is the engine's"), died:
        for _ in range(LOOKS):
            await asyncio.sleep(Timeouts().health_s)
            await server.engine.health()
    assert isinstance((await asyncio.gather(answer, return_exceptions=True))[0], httpx.TransportError)
    assert not await survivors(server.processes, timeout_s=60)
