"""A stock vLLM that somebody has started by hand: one for the whole file, which sees the checkpoints elsewhere.

It runs in a mount namespace of its own, where our directory of runs is another one and empty; where the system allows
no namespace it sees ours too, under both names.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from art_vllm.argument import EXTENSION
from art_vllm.engine import VllmEngine
from art_vllm.options import Runtime, VllmOptions
from art_vllm.plugin import capabilities
from art_vllm.requirement import ENVIRONMENT
from safetensors.numpy import load_file, save_file

import art
from art.local import LocalBackend
from art_core.config import Environment, Timeouts
from art_core.environment import interpreter
from art_core.errors import (
    CapabilityError,
    ConfigError,
    EngineDiedError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    StaleWeightsError,
)
from art_core.policy import ProofKind
from art_core.process import Child
from art_core.protocols.engine import EngineSpec
from art_core.testing.adapter import AdapterShape
from art_core.testing.condition import until
from art_core.testing.shelf import Shelf
from tests.flow.agent import by_length, gather
from tests.tool_model import ADD, question

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

KEY = "somebody's"
ELSEWHERE = 'mount --bind "$0" "$1" && mount -t tmpfs none "$0" && shift && exec "$@"'
VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
FLAGS = (
    "--dtype=float32 --enforce-eager --kv-cache-memory-bytes=268435456 --enable-lora "
    "--max-loras=4 --max-lora-rank=8 --logprobs-mode=processed_logprobs --generation-config=vllm "
    "--enable-auto-tool-choice --tool-call-parser=hermes "
    "--lora-target-modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
)


@dataclass
class Stock:
    """The server, and both names of the directory that it shares with us."""

    url: str
    child: Child
    model: Path
    here: Path
    there: Path
    client: httpx.AsyncClient

    def runtime(self, **changes: Any) -> Runtime:
        given = {
            "mode": "external",
            "server_url": f"{self.url}/v1",
            "api_key": KEY,
            "local_checkpoint_root": str(self.here),
            "server_checkpoint_root": str(self.there),
        }
        return Runtime(**{**given, **changes})

    def engine(self, timeouts: Timeouts | None = None, max_loras: int = 4, **changes: Any) -> VllmEngine:
        options = VllmOptions(runtime=self.runtime(**changes), dtype="float32", max_loras=max_loras)
        return VllmEngine(options, capabilities(options), timeouts)

    def spec(self, model: Path | None = None, rank: int = 8, name: str = "base") -> EngineSpec:
        return EngineSpec(str(model or self.model), name, rank, self.here / "engine.log")

    async def adapters(self) -> dict[str, str]:
        cards = (await self.client.get("/v1/models")).json()["data"]
        return {card["id"]: card["root"] for card in cards if card["parent"]}


@pytest.fixture(scope="module")
async def stock(
    vllm_options: VllmOptions, vllm_tool_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stock]:
    root = tmp_path_factory.mktemp("stock")
    here, there = root / "here", root / "there"
    here.mkdir()
    python = interpreter(ENVIRONMENT, Environment.read().cache, "cpu")
    ours = socket.socket()  # keeps the port from others until the server listens there, which takes it for free
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ours.bind(("127.0.0.1", 0))
    port = ours.getsockname()[1]
    serve = [python, "-m", "vllm.entrypoints.openai.api_server", f"--model={vllm_tool_model}", f"--port={port}"]
    serve += [f"--api-key={KEY}", "--host=127.0.0.1", f"--worker-extension-cls={EXTENSION}", *FLAGS.split()]
    serve += ["--served-model-name", "base", str(vllm_tool_model), str(root / "retrained")]
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0:
        there.mkdir()
        serve = ["unshare", "-m", "sh", "-c", ELSEWHERE, str(here), str(there), *serve]
    else:
        there.symlink_to(here)
    guarded = [python, "-P", "-m", "art_core.guard", *serve]
    child = await Child.launch(guarded, log_path=root / "vllm.log", env=VARIABLES)
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        stock = Stock(url, child, vllm_tool_model, here, there, client)
        engine = stock.engine(health_timeout_s=300)
        await engine.start(stock.spec())
        await engine.stop()
        yield stock
    await child.stop(10)
    ours.close()


async def call_a_tool(model: art.TrainableModel) -> Any:
    """What the model wants to call the tool with, whole and streamed, through the gateway."""
    asked: dict[str, Any] = {"model": "m", "messages": [question(1)], "tools": [ADD], "max_tokens": 80}
    client = model.openai_client().chat.completions
    whole = (await client.create(**asked, temperature=0)).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.tool_calls
    (call,) = whole.message.tool_calls
    assert call.function.name == "add" and len(whole.model_extra["token_ids"]) > 10
    arguments = ""
    async for chunk in await client.create(**asked, temperature=0, stream=True):
        for each in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            arguments += each.function.arguments or ""
    assert json.loads(arguments) == json.loads(call.function.arguments)
    return json.loads(arguments)


async def test_a_run_is_trained_on_it_and_proved_by_answers(stock: Stock, caplog: pytest.LogCaptureFixture) -> None:
    """As a program has it: no engine is named. A client that was killed has left all slots full."""
    left = await Shelf(stock.here / "left", stock.model).store(AdapterShape(1))
    path = str(stock.there / left.directory.relative_to(stock.here))
    for step in range(4):
        await stock.client.post("/v1/load_lora_adapter", json={"lora_name": f"m@{step}", "lora_path": path})
    config: Any = {"vllm_runtime": stock.runtime(score=True).model_dump(), "engine_args": {"max_num_seqs": 8}}
    model = art.TrainableModel(name="m", project="p", base_model=str(stock.model), _internal_config=config)
    async with LocalBackend(path=stock.here, trainer="torch") as door:
        await model.register(door)
        assert "is not told of max_num_seqs; start it" in caplog.text
        groups = await gather(model, by_length)
        for step in (1, 2):
            assert (await door.train(model, groups, learning_rate=1e-3)).metrics["publish/proved"] == 1.0
            assert door._sessions["p", "m"].backend.route.current().policy.step == step
        assert await call_a_tool(model) == {"a": 1, "b": 2}
        policy = door._sessions["p", "m"].backend.route.current().policy
        assert policy.proof.kind is ProofKind.BEHAVIOUR
        listed = await stock.adapters()
        assert listed.keys() == {"m@0", "m@1", "m@2"}
        assert listed["m@2"] == str(stock.there / policy.stored.directory.relative_to(stock.here))
        await stock.client.post("/v1/unload_lora_adapter", json={"lora_name": "m@2"})

        async def again() -> bool:
            return "m@2" in await stock.adapters()

        await until(again, "what was lost is loaded again")
        assert (await door.train(model, groups, learning_rate=1e-3)).metrics["publish/proved"] == 1.0
    assert not await stock.adapters(), "what is ours leaves with us"


async def test_with_our_extension_it_is_proved_by_its_weights(stock: Stock) -> None:
    engine, shelf = stock.engine(worker_extension=True), Shelf(stock.here / "weights", stock.model)
    endpoint = await engine.start(stock.spec())
    assert endpoint.model.context_tokens == 2048
    stored = [await shelf.store(AdapterShape(seed, rank=8)) for seed in (1, 2)]
    loaded = [await engine.load_adapter(f"w@{number}", each) for number, each in enumerate(stored)]
    assert all(each.slot_digest == each.expected_digest is not None for each in loaded)
    assert loaded[0].slot_digest != loaded[1].slot_digest
    assert (await engine.health()).adapters == {f"w@{number}": each.directory for number, each in enumerate(stored)}
    with pytest.raises(CapabilityError, match="does not declare capability 'score'"):
        await engine.score("w@0", [np.arange(9, dtype=np.int32)])
    await engine.stop()


async def test_files_that_are_others_where_it_runs_are_not_proved(stock: Stock) -> None:
    """A copy of the directory that somebody forgot to renew: slot and files there agree, and both are stale."""
    shelf = Shelf(stock.here / "new" / "run", stock.model)
    old = stock.here / "old" / "run"
    stored = await shelf.store(AdapterShape(1, rank=8))
    shutil.copytree(shelf.run, old)
    stale = await Shelf(stock.here / "other", stock.model).store(AdapterShape(2, rank=8))
    shutil.copytree(stale.directory, old / stored.directory.relative_to(shelf.run), dirs_exist_ok=True)
    roots = {"local_checkpoint_root": str(stock.here / "new"), "server_checkpoint_root": str(stock.there / "old")}
    engine = stock.engine(worker_extension=True, **roots)
    await engine.start(stock.spec())
    with pytest.raises(EngineError, match=r"adapter_model.safetensors in .*there/old.* is not that of .*here/new"):
        await engine.load_adapter("s@1", stored)
    assert not await stock.adapters()
    await engine.stop()


@pytest.mark.parametrize(
    ("roots", "says"),
    [
        ({"server_checkpoint_root": "/nowhere"}, "No adapter found.*must be one directory under two names"),
        ({"local_checkpoint_root": "/tmp/elsewhere"}, "is not below vllm_runtime.*so the server can't see it"),
    ],
)
async def test_roots_that_do_not_fit_are_named(stock: Stock, roots: dict[str, str], says: str) -> None:
    engine, shelf = stock.engine(**roots), Shelf(stock.here / says[:6].strip(), stock.model)
    await engine.start(stock.spec())
    with pytest.raises(EngineError, match=says):
        await engine.load_adapter("r@1", await shelf.store(AdapterShape(1)))
    await engine.stop()


async def test_a_server_that_can_not_serve_it_is_refused_before_anything_is_loaded(
    stock: Stock, tmp_path: Path
) -> None:
    other, larger = [Path(shutil.copytree(stock.model, tmp_path / name)) for name in ("other", "larger")]
    config = json.loads((other / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps({**config, "vocab_size": 999}))
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    for engine, spec, says in (
        (stock.engine(api_key="wrong"), stock.spec(), "asks for another key; correct vllm_runtime"),
        (stock.engine(), stock.spec(name="mine"), "does not serve 'mine'.*--served-model-name mine"),
        (stock.engine(), stock.spec(larger), "another base model under the name 'base': it has no token 998"),
        (stock.engine(worker_extension=True), stock.spec(other), "serves other files than the base model"),
        (stock.engine(), stock.spec(rank=16), "--max-lora-rank 8; 16 is needed"),
        (stock.engine(max_loras=8), stock.spec(), "--max-loras 4; 8 is needed"),
    ):
        with pytest.raises(ConfigError, match=says):
            await engine.start(spec)
    with pytest.raises(EngineStartError, match=r"not healthy within 0.2 s: .*; start it, or correct"):
        await stock.engine(server_url="http://127.0.0.1:9", health_timeout_s=0.2).start(stock.spec())


async def test_other_weights_of_the_same_shape_are_found_out(stock: Stock, tmp_path: Path) -> None:
    """Where both see one directory, before anything is loaded; else by the first step, which is not stored."""
    base = Path(shutil.copytree(stock.model, stock.here.parent / "retrained"))
    noise = np.random.default_rng(1)
    tensors = load_file(base / "model.safetensors")
    scaled = {
        name: each * (1 + 2 * noise.standard_normal(each.shape)).astype(each.dtype) for name, each in tensors.items()
    }  # nats apart, where the limit is a tenth: what is sampled decides nothing
    save_file(scaled, base / "model.safetensors", {"format": "pt"})
    roots = dict.fromkeys(("local_checkpoint_root", "server_checkpoint_root"), str(stock.model.parent))
    with pytest.raises(ConfigError, match="serves other files than the base model"):
        await stock.engine(**roots).start(stock.spec(base, name=str(base)))

    config: Any = {"vllm_runtime": stock.runtime().model_dump()}
    model = art.TrainableModel(name="w", project="p", base_model=str(base), _internal_config=config)
    async with LocalBackend(path=stock.here, trainer="torch") as door:
        await model.register(door)
        groups = await gather(model, by_length)
        with pytest.raises(StaleWeightsError, match=r"serves another base model than .*retrained"):
            await door.train(model, groups, learning_rate=1e-3)
        assert await model.get_step() == 0
    assert not await stock.adapters()


async def test_what_it_has_lost_is_found_out_and_the_next_start_finds_it_empty(stock: Stock) -> None:
    """A server that was started again has lost all; here somebody unloads one by hand."""
    engine, shelf = stock.engine(), Shelf(stock.here / "lost", stock.model)
    await engine.start(stock.spec())
    stored = [await shelf.store(AdapterShape(seed)) for seed in (1, 2)]
    for number, each in enumerate(stored):
        await engine.load_adapter(f"l@{number}", each)
    await stock.client.post("/v1/unload_lora_adapter", json={"lora_name": "l@0"})
    with pytest.raises(EngineDiedError, match="has lost l@0: it was started again, or somebody"):
        await engine.health()
    await engine.stop()
    await engine.start(stock.spec())
    assert not (await engine.health()).adapters
    await engine.load_adapter("l@1", stored[1])
    await engine.stop()
    assert not await stock.adapters()


async def test_adapters_of_others_are_left_alone(stock: Stock) -> None:
    engine, shelf = stock.engine(), Shelf(stock.here / "others", stock.model)
    stored = await shelf.store(AdapterShape(1))
    path = str(stock.there / stored.directory.relative_to(stock.here))
    await stock.client.post("/v1/load_lora_adapter", json={"lora_name": "theirs", "lora_path": path})
    await engine.start(stock.spec())
    await engine.load_adapter("o@1", stored)
    await engine.stop()
    assert list(await stock.adapters()) == ["theirs"]
    await stock.client.post("/v1/unload_lora_adapter", json={"lora_name": "theirs"})


async def test_a_server_that_goes_away(stock: Stock) -> None:
    """Last: it ends the server."""
    engine, shelf = stock.engine(), Shelf(stock.here / "away", stock.model)
    await engine.start(stock.spec())
    stored = await shelf.store(AdapterShape(1))
    await engine.load_adapter("a@1", stored)
    await stock.child.stop(10)
    for call in (engine.health(), engine.load_adapter("a@2", stored), engine.unload_adapter("a@1")):
        with pytest.raises(EngineUnavailableError, match="can't be reached") as seen:
            await call
        assert not isinstance(seen.value, EngineDiedError), "nobody knows whether it will come back"
    await engine.stop()
    with pytest.raises(EngineStartError, match="was not healthy within"):
        await stock.engine(health_timeout_s=0.2).start(stock.spec())
