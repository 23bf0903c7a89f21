"""kill -9 of the real SGLang while the client lives: everything answers again, and the program does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from art_sglang.options import SglangOptions

from tests.plugins.life import Life, lived

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
async def alive(
    sglang_options: SglangOptions, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Life]:
    root = tmp_path_factory.mktemp("sglang")
    async with lived("sglang", sglang_options, tiny_model, root, lambda engine: engine._running.server.child) as life:
        yield life


async def test_steps_are_trained_served_and_proved(alive: Life) -> None:
    """The whole line, optimizer files beside the adapter's included."""
    for step in (1, 2, 3):
        assert await alive.train() == step
        assert (await alive.ask("sglang")).model == f"sglang@{step}"
    await alive.whole()


async def test_the_scheduler_killed_while_it_generates(alive: Life) -> None:
    """The newest step and the leased older one are loaded and proved again."""
    async with alive.door.adapter_lease(alive.model, 2):
        noticed_s = await alive.noticed_at_work("scheduler")
        before = alive.backend.route.current().policy.step
        start = time.perf_counter()
        assert await alive.train() == before + 1
        print(f"noticed after {noticed_s:.2f} s, trained and served again after {time.perf_counter() - start:.1f} s")
        assert (await alive.ask("sglang")).model == f"sglang@{before + 1}"
        assert (await alive.ask("sglang@2")).model == "sglang@2"
        await alive.whole()


async def test_killed_during_a_load_the_same_call_of_train_goes_on(
    alive: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detokenizer, which loads need least of all, dies while the scheduler holds the load up."""
    real, killed = alive.backend.engine.load_adapter, list[psutil.Process]()

    async def load(name: str, stored: Any) -> Any:
        if killed:
            return await real(name, stored)
        alive.one("scheduler").suspend()
        loading = asyncio.create_task(real(name, stored))
        await asyncio.wait({loading}, timeout=0.3)
        assert not loading.done()
        killed.append(alive.one("detokenizer"))
        killed[0].kill()
        return await loading

    monkeypatch.setattr(alive.backend.engine, "load_adapter", load)
    before = alive.backend.route.current().policy.step
    assert await alive.train() == before + 1
    assert killed and (await alive.ask("sglang")).model == f"sglang@{before + 1}"
    await alive.whole()
