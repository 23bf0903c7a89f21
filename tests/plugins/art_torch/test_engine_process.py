"""The torch engine as core sees it: the contract of `InferenceEngine`, on real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions

from art_core.errors import (
    CapabilityError,
    CheckpointCorruptError,
    ConfigError,
    EngineError,
    EngineUnavailableError,
    NoRouteError,
)
from art_core.protocols.engine import EngineSpec
from art_core.testing.condition import until
from art_core.testing.family import descendants, survivors
from tests.plugins.art_torch.engine_sample import EngineServer, Reference, prompt


async def test_endpoint_and_health(
    engine_server: EngineServer, tiny_model: Path, engine_adapters: dict[str, Path]
) -> None:
    endpoint = engine_server.endpoint
    assert endpoint.max_adapters == 4
    assert endpoint.model.vocab_size == 258 and endpoint.model.context_tokens == 512
    assert endpoint.model.identity.name == str(tiny_model)
    health = await engine_server.engine.health()
    assert health.adapters == {"a": engine_adapters["a"]}


async def test_load_proves_and_unload_forgets(engine_server: EngineServer, engine_adapters: dict[str, Path]) -> None:
    engine, stored = engine_server.engine, engine_server.stored(engine_adapters["b"])
    loaded = await engine.load_adapter("b@1", stored)
    assert loaded.name == "b@1" and loaded.slot_digest == loaded.expected_digest is not None
    with pytest.raises(EngineError, match="'b@1' is taken"):
        await engine.load_adapter("b@1", stored)
    assert (await engine.health()).adapters["b@1"] == engine_adapters["b"]
    await engine.unload_adapter("b@1")
    await engine.unload_adapter("b@1")
    assert "b@1" not in (await engine.health()).adapters
    await engine_server.post("/v1/completions", status=404, model="b@1", prompt="x")


async def test_a_damaged_adapter_is_refused_as_such(
    engine_server: EngineServer, engine_adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(engine_adapters["b"], tmp_path / "b")
    (tmp_path / "b/adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(CheckpointCorruptError, match=r"adapter_model\.safetensors is no safetensors file"):
        await engine_server.engine.load_adapter("bad", engine_server.stored(tmp_path / "b"))
    assert "bad" not in (await engine_server.engine.health()).adapters


async def test_score(engine_server: EngineServer, tiny_model: Path, engine_adapters: dict[str, Path]) -> None:
    reference = Reference(tiny_model, engine_adapters)
    sequences = [np.array(prompt(n, n), np.int32) for n in (1, 2, 30)]
    for name in ("base", "a"):
        scored = await engine_server.engine.score(name, sequences)
        for tokens, got in zip(sequences, scored, strict=True):
            rows = reference.logprobs(name, tokens.tolist())
            assert got.dtype == np.float32 and got.shape == tokens.shape and got[0] == 0
            np.testing.assert_allclose(got[1:], rows[np.arange(len(rows)), tokens[1:]], atol=1e-4)
    with pytest.raises(NoRouteError, match="'nope' is not served"):
        await engine_server.engine.score("nope", sequences)
    with pytest.raises(EngineError, match="from 0 to 257"):
        await engine_server.engine.score("base", [np.array([258], np.int32)])


async def test_starting_twice_and_sleeping_are_refused(engine_server: EngineServer, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="started already"):
        await engine_server.engine.start(EngineSpec("x", "base", 8, tmp_path / "log"))
    for call in (engine_server.engine.sleep(1), engine_server.engine.wake()):
        with pytest.raises(CapabilityError, match="'sleep'"):
            await call


async def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    engine = TorchEngine(TorchEngineOptions(device="cpu"))
    with pytest.raises(ConfigError, match="/no/such/model"):
        await engine.start(EngineSpec("/no/such/model", "base", 8, tmp_path / "engine.log"))
    with pytest.raises(EngineUnavailableError, match="not started"):
        await engine.health()
    await engine.stop()


async def test_a_killed_engine_says_how_it_died_and_starts_again(tiny_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine(TorchEngineOptions(device="cpu", max_model_len=64))
    spec = EngineSpec(str(tiny_model), "base", 8, tmp_path / "engine.log", chat_template="{{ messages[0].content }}")
    endpoint = await engine.start(spec)
    assert endpoint.model.context_tokens == 64 and endpoint.model.chat_template == spec.chat_template
    assert engine._running is not None and engine._running.server.child is not None
    os.kill(engine._running.server.child.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailableError, match="SIGKILL"):
        await engine.score("base", [np.array([1], np.int32)])
    with pytest.raises(EngineUnavailableError, match="SIGKILL"):
        await engine.health()
    await engine.stop()
    await engine.stop()
    again = await engine.start(spec)
    assert again.api_key != endpoint.api_key
    assert (await engine.health()).running_requests == 0
    await engine.stop()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{again.base_url}/health")


async def test_a_cancelled_start_leaves_no_process(tiny_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine(TorchEngineOptions(device="cpu"))
    log_path, before = tmp_path / "engine.log", descendants().keys()
    task = asyncio.create_task(engine.start(EngineSpec(str(tiny_model), "base", 8, log_path)))
    await until(log_path.exists, "the process has its log")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(EngineUnavailableError):
        await engine.health()
    assert not await survivors([process for pid, process in descendants().items() if pid not in before])


def test_importing_the_engine_loads_no_torch() -> None:
    code = "import sys, art_torch.engine, art_torch.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
