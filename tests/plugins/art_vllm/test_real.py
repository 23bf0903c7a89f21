"""vLLM's own traps, and adapters loaded wrongly: one real server for them all, its worker breakable."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from art_vllm import argument
from art_vllm.argument import argument_names, find_installed
from art_vllm.engine import VllmEngine
from art_vllm.options import VllmOptions
from art_vllm.plugin import capabilities

from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Environment, Timeouts
from art_core.environment import interpreter
from art_core.errors import EngineDiedError, EngineError, StaleWeightsError
from art_core.policy import ProofKind
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.testing.adapter import AdapterShape
from art_core.testing.condition import NOTICED_S, until, within
from art_core.testing.shelf import Shelf
from tests.plugins.art_vllm.broken_worker import FAULTS
from tests.plugins.life import LOOKS
from tests.plugins.probed_step import ProbedSteps

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
ADMIN = ("/collective_rpc", "/sleep", "/wake_up", "/pause", "/resume", "/reset_prefix_cache", "/v1/load_lora_adapter")
BROKEN = "tests.plugins.art_vllm.broken_worker.BrokenWorker"


@dataclass
class Bench:
    engine: VllmEngine
    endpoint: Endpoint
    shelf: Shelf
    steps: ProbedSteps
    client: httpx.AsyncClient
    publisher: ReloadPublisher
    model: Path
    options: VllmOptions

    async def break_loads(self, fault: str, other: StoredCheckpoint) -> None:
        await self.engine._started().api.call_workers("art_break", fault, str(other.directory))

    async def complete(self, name: str, tokens: int) -> Any:
        body = {"model": name, "prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True, "logprobs": 1}
        return await self.client.post("/v1/completions", json={**body, "return_token_ids": True})

    async def running(self, count: int) -> None:
        """Wait until it is at so many requests, none of which may be able to end."""

        async def all_in() -> bool:
            return (await self.engine.health()).running_requests == count

        await until(all_in, f"{count} requests run")

    @property
    def core(self) -> psutil.Process:
        """The process that computes."""
        child = self.engine._started().api.server.child
        assert child
        family = psutil.Process(child.pid).children(recursive=True)
        titles = [" ".join(each.cmdline()) for each in family]
        assert not [title for title in titles if "Worker" in title]  # which it would wait for by spinning
        return family[next(number for number, title in enumerate(titles) if "EngineCore" in title)]

    async def clear(self) -> None:
        for name in (await self.engine.health()).adapters:
            await self.engine.unload_adapter(name)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
async def bench(
    request: pytest.FixtureRequest, vllm_options: VllmOptions, vllm_model: Path, tmp_path_factory: Any
) -> AsyncIterator[Bench]:
    root = tmp_path_factory.mktemp(f"vllm-{request.param}")
    options = vllm_options.model_copy(update={"dtype": request.param})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argument, "EXTENSION", BROKEN)
        patch.setenv("PYTHONPATH", str(ROOT))
        declared = Capabilities({**capabilities(options).declared, Capability.SLEEP: FULL})
        engine = VllmEngine(options, declared)
        endpoint = await engine.start(EngineSpec(str(vllm_model), "base", 8, root / "engine.log"))
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=120) as client:
            shelf = Shelf(root / "run", vllm_model)
            publisher = ReloadPublisher(ReloadOptions(), engine, declared)
            (root / "probed").mkdir()
            steps = ProbedSteps(root / "probed", vllm_model)
            yield Bench(engine, endpoint, shelf, steps, client, publisher, vllm_model, options)
        await engine.stop()


@pytest.fixture(autouse=True)
async def empty(bench: Bench) -> None:
    await bench.clear()


def only_float32(bench: Bench) -> None:
    if bench.options.dtype != "float32":
        pytest.skip("the type makes no difference here")


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_adapter_loaded_wrongly_is_caught_by_its_slot(bench: Bench, fault: str) -> None:
    other, right = [await bench.shelf.store(AdapterShape(seed, rank=8)) for seed in (1, 2)]
    await bench.publisher.publish("m@0", other)
    await bench.break_loads(fault, other)
    try:
        with pytest.raises(StaleWeightsError, match="holds other weights than step"):
            await bench.publisher.publish("m@1", right)
        assert list((await bench.engine.health()).adapters) == ["m@0"]
    finally:
        await bench.break_loads("", other)
    policy = await bench.publisher.publish("m@1", right)
    assert policy.proof.kind is ProofKind.WEIGHTS


async def published_without_the_weight_proof(bench: Bench, fault: str) -> ProofKind:
    """Two steps, the second with the fault; what proves the second."""
    await bench.clear()
    publisher = ReloadPublisher(ReloadOptions(), bench.engine, Capabilities({Capability.SCORE: FULL}))
    first, second = await bench.steps.next(), await bench.steps.next()
    await publisher.publish(f"m@{first.step}", first)
    await bench.break_loads(fault, first)
    try:
        return (await publisher.publish(f"m@{second.step}", second)).proof.kind
    finally:
        await bench.break_loads("", first)


@pytest.mark.parametrize("fault", FAULTS)
async def test_answers_catch_every_fault_in_fp32_and_prove_nothing_in_bf16(bench: Bench, fault: str) -> None:
    if bench.options.dtype == "bfloat16":
        assert await published_without_the_weight_proof(bench, fault) is ProofKind.NONE
        return
    with pytest.raises(StaleWeightsError, match="did not move as the trainer's did"):
        await published_without_the_weight_proof(bench, fault)
    assert await published_without_the_weight_proof(bench, "") is ProofKind.BEHAVIOUR


async def test_no_false_alarm_for_the_smallest_steps(bench: Bench) -> None:
    """200 publications, each of a neighbour of the one before."""
    only_float32(bench)
    for number in range(200):
        stored = await bench.shelf.store(AdapterShape(7, rank=8, strength=0.2 + number * 5e-6))
        policy = await bench.publisher.publish(f"m@{number}", stored)
        assert policy.proof.kind is ProofKind.WEIGHTS
        await bench.publisher.retract(policy)


async def test_an_unloaded_adapter_with_requests_is_never_read_again(bench: Bench) -> None:
    """vLLM's own engine ends when it evicts an adapter that still runs and its directory is gone.

    No request ends while it is looked at: vLLM is told to let them stand.
    """
    only_float32(bench)
    leaving = await bench.shelf.store(AdapterShape(1))
    await bench.engine.load_adapter("leaving@1", leaving)
    ask = bench.engine._started().api.server.ask
    assert (await ask("POST", "/pause?mode=keep", None, 60)).status_code == 200
    calls = [asyncio.ensure_future(bench.complete("leaving@1", 48)) for _ in range(4)]
    await bench.running(4)
    await bench.engine.unload_adapter("leaving@1")
    shutil.rmtree(leaving.directory)
    others = [await bench.shelf.store(AdapterShape(seed)) for seed in (2, 3, 4, 5)]
    for number, stored in enumerate(others[:3]):
        await bench.engine.load_adapter(f"o@{number}", stored)
    with pytest.raises(EngineError, match=r"4 of 4 in use \(1 of them by unloaded adapters"):
        await bench.engine.load_adapter("o@3", others[3])
    assert (await ask("POST", "/resume", None, 60)).status_code == 200
    for call in calls:
        answer = (await call).json()
        assert len(answer["choices"][0]["token_ids"]) == 48
    await bench.engine.load_adapter("o@3", others[3])
    assert len((await bench.engine.health()).adapters) == 4


async def test_a_sequence_as_long_as_the_context_is_scored_whole(bench: Bench) -> None:
    only_float32(bench)
    tokens = np.random.default_rng(1).integers(0, 250, bench.endpoint.model.context_tokens).astype(np.int32)
    whole, shorter = await bench.engine.score("base", [tokens, tokens[:-1]])
    assert len(whole) == len(tokens)
    assert np.abs(whole[:-1] - shorter).max() < 1e-4
    assert np.isfinite(whole).all() and whole[-1] < 0


async def test_cached_prompts_are_scored_whole_and_alike(bench: Bench) -> None:
    only_float32(bench)
    await bench.engine.load_adapter("c@1", await bench.shelf.store(AdapterShape(1)))
    tokens = np.random.default_rng(1).integers(0, 250, 300).astype(np.int32)
    first = (await bench.engine.score("c@1", [tokens]))[0]
    await bench.client.post("/v1/completions", json={"model": "c@1", "prompt": tokens.tolist(), "max_tokens": 4})
    assert np.abs((await bench.engine.score("c@1", [tokens]))[0] - first).max() < 1e-4


async def test_an_error_in_the_worker_is_data_and_the_engine_lives(bench: Bench) -> None:
    only_float32(bench)
    for arguments in (("999", "/nowhere"), ("no number", "/nowhere")):
        with pytest.raises(EngineError, match="could not art_digest"):
            await bench.engine._started().api.call_workers("art_digest", *arguments)
    assert (await bench.complete("base", 1)).status_code == 200


async def test_tools_that_the_template_does_not_show_are_refused(bench: Bench) -> None:
    only_float32(bench)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "tools": tools, "max_tokens": 1}
    refused = await bench.client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400 and "the chat template does not show them" in refused.json()["error"]["message"]
    assert (await bench.client.post("/v1/chat/completions", json={**body, "tool_choice": "none"})).status_code == 200


async def test_administrative_routes_need_the_key_and_this_machine(bench: Bench) -> None:
    only_float32(bench)
    async with httpx.AsyncClient(base_url=bench.endpoint.base_url, timeout=60) as stranger:
        for path in ADMIN:
            assert (await stranger.post(path, json={})).status_code == 401
        assert (await stranger.get("/openapi.json")).status_code == 401
    listening = [
        each.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for each in process.net_connections("tcp")
        if each.status == "LISTEN" and each.laddr.port == int(bench.endpoint.base_url.rpartition(":")[2])
    ]
    assert set(listening) == {"127.0.0.1"}


async def test_after_sleep_and_wake_every_slot_is_proved(bench: Bench) -> None:
    """A CPU gives no memory back, but takes the same calls; what a GPU does with them was not seen."""
    only_float32(bench)
    stored = await bench.shelf.store(AdapterShape(3))
    await bench.engine.load_adapter("s@1", stored)
    tokens = [np.arange(20, dtype=np.int32)]
    before = (await bench.engine.score("s@1", tokens))[0]
    for level in (1, 2):
        await bench.engine.sleep(level)
        with pytest.raises(EngineError, match="sleeps; wake it first"):
            await bench.engine.load_adapter("s@2", stored)
        await bench.engine.wake()
        assert np.abs((await bench.engine.score("s@1", tokens))[0] - before).max() < 1e-4
    bench.core.suspend()
    call = asyncio.ensure_future(bench.complete("s@1", 2))
    await bench.running(1)
    with pytest.raises(EngineError, match="1 requests run; let them finish first"):
        await bench.engine.sleep(1)
    bench.core.resume()
    assert (await call).status_code == 200


async def test_every_argument_of_ours_is_one_of_the_installed_version(bench: Bench) -> None:
    only_float32(bench)
    installed = find_installed(interpreter(argument_environment(), Environment.read().cache, "cpu"))
    assert installed.cpu_build and installed.version.startswith("0.32.")
    names = argument_names(installed)
    words = argument.server_arguments(bench.options, EngineSpec("/m", "b", 8, Path("/l")), cuda=True)
    ours = {word[2:].partition("=")[0].removeprefix("no-").replace("-", "_") for word in words if word[:2] == "--"}
    assert ours <= names
    assert set(argument._OURS) - {"model_tag"} <= names


def argument_environment() -> Any:
    from art_vllm.requirement import ENVIRONMENT

    return ENVIRONMENT


async def test_a_killed_core_is_found_dead_within_two_seconds(bench: Bench) -> None:
    """Last: it ends the server. The API server lives on for seconds, so a look at its process would not do.

    The core is suspended first, so that the request can't end by itself.
    """
    only_float32(bench)
    core = bench.core
    core.suspend()
    call = asyncio.ensure_future(bench.complete("base", 500))
    await bench.running(1)
    core.kill()
    with within(NOTICED_S, "the core's death is the engine's"), pytest.raises(EngineDiedError):
        for _ in range(LOOKS):
            await asyncio.sleep(Timeouts().health_s)
            await bench.engine.health()
    assert json.loads((await call).text)["error"]["code"] == 500
