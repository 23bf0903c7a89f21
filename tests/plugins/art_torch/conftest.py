"""The torch engine on the tiny model: in this process for the rooms, as a real process for the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions
from art_torch.serve.serving import Serving, ServingConfig

from art_core.protocols.engine import EngineSpec
from tests.plugins.art_torch.engine_sample import EngineServer, write_adapter


@pytest.fixture(scope="session")
def engine_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random PEFT adapters of different shape: `a` on every linear module, `b` on two of them."""
    root = tmp_path_factory.mktemp("engine-adapters")
    b: dict[str, Any] = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}
    return {
        "a": write_adapter(tiny_model, root / "a", seed=1, r=8, lora_alpha=16, target_modules="all-linear"),
        "b": write_adapter(tiny_model, root / "b", seed=2, **b),
    }


@pytest.fixture
async def serving(tiny_model: Path, engine_adapters: dict[str, Path]) -> AsyncIterator[Serving]:
    """The engine's inside, without HTTP, with adapters `a` and `b` loaded."""
    options = TorchEngineOptions(device="cpu", max_num_seqs=16, max_loras=3, cpu_threads=1)
    serving = Serving.load(ServingConfig(options, str(tiny_model), "base", lora_rank=8))
    for name, directory in engine_adapters.items():
        serving.adapters.load(name, directory)
    serving.thread.start(asyncio.get_running_loop())
    yield serving
    serving.thread.stop()


@pytest.fixture(scope="session")
async def engine_server(
    tiny_model: Path, engine_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineServer]:
    """A started engine process, with adapter `a` loaded."""
    engine = TorchEngine(TorchEngineOptions(device="cpu", cpu_threads=1))
    log_path = tmp_path_factory.mktemp("engine-log") / "engine.log"
    endpoint = await engine.start(EngineSpec(str(tiny_model), "base", lora_rank=8, log_path=log_path))
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=60) as client:
        server = EngineServer(engine, endpoint, client)
        await engine.load_adapter("a", server.stored(engine_adapters["a"]))
        yield server
    await engine.stop()
