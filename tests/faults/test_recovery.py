"""kill -9 of a real engine and trainer while the client lives: everything answers again, and the program does nothing.

One backend on the tiny model. The engine is killed as often as it is started again within its limit, then once more;
then the program does what it is told, and the backend is closed while an engine starts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import art
from art.local import LocalBackend
from art_core.backend import Backend
from art_core.errors import EngineDiedError
from art_core.policy import ProofKind
from tests.flow.agent import by_length, gather

NOTICED_S = 2.0


@dataclass
class Alive:
    """A registered model, its backend, and its processes."""

    model: art.TrainableModel
    door: LocalBackend
    groups: list[art.TrajectoryGroup]

    def __post_init__(self) -> None:
        self.address = self.backend.gateway.base_url, self.backend.gateway.api_key

    @property
    def backend(self) -> Backend:
        return self.door._sessions["faults", "phoenix"].backend

    @property
    def trainer(self) -> psutil.Process:
        connection = self.backend.trainer._connection
        assert connection is not None
        return psutil.Process(connection.child.pid)

    @property
    def engine(self) -> psutil.Process:
        return psutil.Process(self.backend.engine._running.server.child.pid)  # type: ignore[attr-defined]

    async def noticed(self) -> None:
        """Wait until it is known that the engine is dead; before, its closed socket alone makes the gateway refuse."""
        async with asyncio.timeout(NOTICED_S):
            while "is being started again" not in (await self.health()).text:
                await asyncio.sleep(0)

    async def health(self) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(self.backend.gateway.base_url.removesuffix("/v1") + "/health")

    async def ask(self, name: str, **fields: Any) -> Any:
        messages = [{"role": "user", "content": "Hi"}]
        return await self.model.openai_client().chat.completions.create(
            model=name, messages=messages, **{"max_tokens": 2, **fields}
        )

    async def train(self) -> int:
        result = await self.door.train(self.model, self.groups, learning_rate=1e-4)
        assert result.metrics["publish/proved"] == 1.0
        return result.step

    async def whole(self) -> None:
        """The engine holds exactly what the route serves, each step proved by its weights; the address is as before."""
        served = self.backend.route.current().served
        for policy in served.values():
            assert policy.proof.kind is ProofKind.WEIGHTS
            assert policy.proof.slot_digest == policy.proof.expected_digest is not None
        held = (await self.backend.engine.health()).adapters
        assert dict(held) == {policy.name: policy.stored.directory for policy in served.values()}
        assert (self.model.inference_base_url, self.model.inference_api_key) == self.address
        assert (self.backend.gateway.base_url, self.backend.gateway.api_key) == self.address


@pytest.fixture(scope="module")
async def alive(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alive]:
    model = art.TrainableModel(name="phoenix", project="faults", base_model=str(tiny_model))
    async with LocalBackend(path=tmp_path_factory.mktemp("recovery"), engine="torch", trainer="torch") as door:
        await model.register(door)
        yield Alive(model, door, await gather(model, by_length))


async def test_killed_while_four_streams_run(alive: Alive) -> None:
    """Every stream ends at once with an error; the same client's next call waits and succeeds by itself."""
    first, second = await alive.train(), await alive.train()
    lease = alive.backend.route.lease(first)
    digests = {step: policy.proof.slot_digest for step, policy in alive.backend.route.current().served.items()}
    names = [f"phoenix@{first}", "phoenix"] * 2
    streams = [await alive.ask(name, stream=True, max_tokens=400) for name in names]
    started = [asyncio.Event() for _ in streams]

    async def read(stream: Any, begun: asyncio.Event) -> str:
        try:
            async for _ in stream:
                begun.set()
        except Exception as error:
            return str(error)
        return "whole"

    readers = [asyncio.create_task(read(*pair)) for pair in zip(streams, started, strict=True)]
    await asyncio.gather(*(begun.wait() for begun in started))
    killed = alive.engine
    killed.kill()
    start = time.perf_counter()
    ends = await asyncio.gather(*readers)
    cut_s = time.perf_counter() - start
    assert cut_s < NOTICED_S
    assert all("engine" in end for end in ends), ends
    await alive.noticed()
    noticed_s = time.perf_counter() - start
    assert noticed_s < NOTICED_S

    assert (await alive.ask("phoenix")).model == f"phoenix@{second}"
    print(f"streams cut after {cut_s:.2f} s, noticed after {noticed_s:.2f} s, back {time.perf_counter() - start:.1f} s")
    assert alive.engine.pid != killed.pid and not killed.is_running()
    assert (await alive.ask(f"phoenix@{first}")).model == f"phoenix@{first}"
    lease.release()
    assert alive.backend.route.current().policy.step == second
    for step, policy in alive.backend.route.current().served.items():
        assert policy.proof.slot_digest == digests[step]
    await alive.whole()


async def test_killed_during_a_load_the_same_call_of_train_goes_on(
    alive: Alive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is stopped before it can read the request, and killed once the request is on its way.

    An answer is under way too: its client, an unchanged one, asks again by itself.
    """
    real, deaths, asked = alive.backend.engine.load_adapter, list[float](), list[asyncio.Task[Any]]()

    async def load(name: str, stored: Any) -> Any:
        if deaths:
            return await real(name, stored)
        asked.append(asyncio.create_task(alive.ask("phoenix", max_tokens=400)))
        while not alive.backend.route.in_flight():
            await asyncio.sleep(0)
        process = alive.engine
        process.suspend()
        loading = asyncio.create_task(real(name, stored))
        await asyncio.wait({loading}, timeout=0.2)
        assert not loading.done()
        process.kill()
        deaths.append(time.perf_counter())
        return await loading

    monkeypatch.setattr(alive.backend.engine, "load_adapter", load)
    before = alive.backend.route.current().policy.step
    assert await alive.train() == before + 1
    assert len(deaths) == 1
    assert (await asked[0]).model in {f"phoenix@{before}", f"phoenix@{before + 1}"}
    assert (await alive.ask("phoenix")).model == f"phoenix@{before + 1}"
    await alive.whole()


async def test_engine_and_trainer_killed_while_idle_the_next_call_of_train_just_works(alive: Alive) -> None:
    alive.engine.kill()
    alive.trainer.kill()
    await alive.noticed()
    url, headers = f"{alive.model.inference_base_url}/chat/completions", {"Authorization": "Bearer wrong"}
    body = {"model": "phoenix", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    async with httpx.AsyncClient() as client:
        assert (await client.post(url, json=body, headers=headers)).status_code == 401
        headers = {"Authorization": f"Bearer {alive.model.inference_api_key}"}
        refused = await client.post(url, json=body, headers=headers)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
    before = alive.backend.route.current().policy.step
    assert await alive.train() == before + 1
    assert (await alive.ask("phoenix")).model == f"phoenix@{before + 1}"
    await alive.whole()


async def test_killed_once_more_it_is_given_up_and_what_the_message_says_helps(alive: Alive) -> None:
    stored = len(await alive.backend.store.list())
    while (refused := await alive.health()).headers.get("x-should-retry") != "false":
        if refused.status_code == 200:
            alive.engine.kill()
        await asyncio.sleep(0)
    assert refused.status_code == 503
    with pytest.raises(EngineDiedError, match=r"died 4 times within 600 s .* register the model again"):
        await alive.train()
    assert len(await alive.backend.store.list()) == stored
    await alive.door.close()
    await alive.model.register(alive.door)
    assert (await alive.ask("phoenix")).model == f"phoenix@{stored - 1}"


async def test_closed_while_an_engine_starts_no_process_is_left(alive: Alive) -> None:
    before = set(psutil.Process().children(recursive=True))
    trainer = alive.trainer
    alive.engine.kill()
    async with asyncio.timeout(10):
        while not (born := set(psutil.Process().children(recursive=True)) - before):
            await asyncio.sleep(0)
    await alive.door.close()
    _, left = await asyncio.to_thread(psutil.wait_procs, [*born, trainer], 5)
    assert left == []
