"""kill -9 of the real vLLM while the client lives: everything answers again, and the program does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from art_vllm.options import VllmOptions

from tests.plugins.life import Life, lived

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
async def life(
    vllm_options: VllmOptions, vllm_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Life]:
    root = tmp_path_factory.mktemp("vllm-life")
    child = lambda engine: engine._started().api.server.child  # noqa: E731
    async with lived("life", vllm_options, vllm_model, root, child) as life:
        yield life


async def test_the_server_killed_while_idle(life: Life) -> None:
    """The newest step and the leased older one are loaded and proved again before anybody asks."""
    assert [await life.train() for _ in range(3)] == [1, 2, 3]
    async with life.door.adapter_lease(life.model, 2):
        print(f"noticed after {await life.noticed(life.processes[0]):.2f} s")
        start = time.perf_counter()
        assert await life.train() == 4
        print(f"trained and served again after {time.perf_counter() - start:.1f} s")
        assert (await life.ask("life@2")).model == "life@2"
        await life.whole()


async def test_the_core_killed_while_it_generates(life: Life) -> None:
    print(f"noticed after {await life.noticed_at_work('EngineCore'):.2f} s")
    before = life.backend.route.current().policy.step
    assert await life.train() == before + 1
    await life.whole()


async def test_killed_during_a_load_the_same_call_of_train_goes_on(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    real, killed = life.backend.engine.load_adapter, list[psutil.Process]()

    async def load(name: str, stored: Any) -> Any:
        if killed:
            return await real(name, stored)
        killed.append(life.one("EngineCore"))
        killed[0].suspend()
        loading = asyncio.create_task(real(name, stored))
        await asyncio.wait({loading}, timeout=0.3)
        assert not loading.done()
        killed[0].kill()
        return await loading

    monkeypatch.setattr(life.backend.engine, "load_adapter", load)
    before = life.backend.route.current().policy.step
    assert await life.train() == before + 1
    assert killed
    await life.whole()
