"""kill -9 of the real SGLang while the client lives: everything answers again, and the program does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from art_sglang.options import SglangOptions

import art
from art.local import LocalBackend
from art_core.backend import Backend
from art_core.policy import ProofKind
from art_core.testing.family import descendants, survivors
from tests.flow.agent import by_length, gather

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
NOTICED_S = 2.0


@dataclass
class Alive:
    """A registered model on SGLang and the torch trainer."""

    model: art.TrainableModel
    door: LocalBackend
    groups: list[art.TrajectoryGroup]

    @property
    def backend(self) -> Backend:
        return self.door._sessions["faults", "sglang"].backend

    @property
    def processes(self) -> list[psutil.Process]:
        """SGLang's: the server and what it started."""
        server = psutil.Process(self.backend.engine._running.server.child.pid)  # type: ignore[attr-defined]
        return [server, *server.children(recursive=True)]

    def one(self, title: str) -> psutil.Process:
        return next(each for each in self.processes if title in " ".join(each.cmdline()))

    async def noticed(self, killed: psutil.Process) -> float:
        """Kill it, and wait until core knows; seconds."""
        before, start = self.processes, time.perf_counter()
        killed.kill()
        while self.backend.engine._running is not None and psutil.pid_exists(before[0].pid):  # type: ignore[attr-defined]
            await asyncio.sleep(0)
            assert time.perf_counter() - start < NOTICED_S
        noticed_s = time.perf_counter() - start
        assert not await survivors(before, timeout_s=5), "no process of SGLang outlives another"
        return noticed_s

    async def ask(self, name: str, **fields: Any) -> Any:
        messages = [{"role": "user", "content": "Hi"}]
        client = self.model.openai_client().with_options(max_retries=0)
        return await client.chat.completions.create(model=name, messages=messages, **{"max_tokens": 2, **fields})

    async def train(self) -> int:
        result = await self.door.train(self.model, self.groups, learning_rate=1e-4)
        assert result.metrics["publish/proved"] == 1.0
        return result.step

    async def whole(self) -> None:
        """SGLang holds exactly what the route serves, each step proved by its weights."""
        served = self.backend.route.current().served
        for policy in served.values():
            assert policy.proof.kind is ProofKind.WEIGHTS
        held = (await self.backend.engine.health()).adapters
        assert dict(held) == {policy.name: policy.stored.directory for policy in served.values()}


@pytest.fixture(scope="module")
async def alive(
    sglang_options: SglangOptions, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Alive]:
    model = art.TrainableModel(name="sglang", project="faults", base_model=str(tiny_model))
    before = descendants().keys()
    async with LocalBackend(path=tmp_path_factory.mktemp("sglang"), engine=sglang_options, trainer="torch") as door:
        await model.register(door)
        yield Alive(model, door, await gather(model, by_length))
        ours = [process for pid, process in descendants().items() if pid not in before]
    assert not await survivors(ours), "closing leaves no process"


async def test_steps_are_trained_served_and_proved(alive: Alive) -> None:
    """The whole line, optimizer files beside the adapter's included."""
    for step in (1, 2, 3):
        assert await alive.train() == step
        assert (await alive.ask("sglang")).model == f"sglang@{step}"
    await alive.whole()


async def test_the_scheduler_killed_while_it_generates(alive: Alive) -> None:
    answers = [asyncio.create_task(alive.ask("sglang", max_tokens=400)) for _ in range(3)]
    while sum(alive.backend.route.in_flight().values()) < 3:
        await asyncio.sleep(0)
    noticed_s = await alive.noticed(alive.one("scheduler"))
    ends = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(end, Exception) for end in ends), ends
    before = alive.backend.route.current().policy.step
    start = time.perf_counter()
    assert await alive.train() == before + 1
    print(f"noticed after {noticed_s:.2f} s, trained and served again after {time.perf_counter() - start:.1f} s")
    assert (await alive.ask("sglang")).model == f"sglang@{before + 1}"
    await alive.whole()


async def test_killed_during_a_load_the_same_call_of_train_goes_on(
    alive: Alive, monkeypatch: pytest.MonkeyPatch
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
