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
import openai
import psutil
import pytest

import art
from art.local import LocalBackend
from art_core.backend import Backend
from art_core.config import Timeouts
from art_core.errors import EngineDiedError
from art_core.policy import ProofKind
from art_core.protocols.engine import EngineSpec
from art_core.testing.condition import NOTICED_S, until, within
from art_core.testing.family import survivors
from tests.flow.agent import by_length, gather

LOOKS = int(2.0 / Timeouts().health_s)
"""Of these one must have found a dead engine, two seconds after it died: counted, because a machine that does much else
takes its time for each."""


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

    async def noticed(self) -> float:
        """Kill the engine, and wait until that is known; seconds until it was.

        Before, its closed socket alone makes the gateway refuse.
        """
        looks, look = list[float](), self.backend.engine.health

        async def counted() -> Any:
            looks.append(time.perf_counter())
            return await look()

        async def known() -> bool:
            return "is being started again" in (await self.health()).text

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.backend.engine, "health", counted)
            start = time.perf_counter()
            self.engine.kill()
            with within(NOTICED_S, "the engine's death is known"):
                await until(known, "the engine's death is known")
            assert len(looks) <= LOOKS
        return time.perf_counter() - start

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


async def end_of(stream: Any) -> str:
    """The error with which a stream ends, or what its last chunk says; empty where it just stops."""
    reason = ""
    try:
        async for chunk in stream:
            reason = chunk.choices[0].finish_reason or reason
    except openai.APIError as error:
        return str(error)
    return reason


@pytest.fixture(scope="module")
async def alive(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alive]:
    model = art.TrainableModel(name="phoenix", project="faults", base_model=str(tiny_model))
    async with LocalBackend(path=tmp_path_factory.mktemp("recovery"), engine="torch", trainer="torch") as door:
        await model.register(door)
        yield Alive(model, door, await gather(model, by_length))


async def test_killed_while_four_streams_run(alive: Alive) -> None:
    """Every stream ends with an error; the same client's next call waits and succeeds by itself.

    The engine is suspended once all have begun, and asked for one more, which therefore can't end by itself; the others
    may have ended before, on a machine that does much else. It is of the base model, to be told from them.
    """
    first, second = await alive.train(), await alive.train()
    lease = alive.backend.route.lease(first)
    digests = {step: policy.proof.slot_digest for step, policy in alive.backend.route.current().served.items()}
    names = [f"phoenix@{first}", "phoenix"] * 2
    endless = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
    streams = [await alive.ask(name, stream=True, **endless) for name in names]
    for stream in streams:
        await anext(stream)
    killed = alive.engine
    killed.suspend()
    client = alive.model.openai_client().with_options(max_retries=0)
    messages = [{"role": "user", "content": "Hi"}]
    base = alive.model.base_model
    waiting = asyncio.create_task(client.chat.completions.create(model=base, messages=messages, max_tokens=2))  # type: ignore[arg-type]
    await until(lambda: None in alive.backend.route.in_flight(), "one more is under way")
    start = time.perf_counter()
    noticed_s = await alive.noticed()
    ends = [await end_of(stream) for stream in streams]
    assert all("engine" in end or end == "length" for end in ends), ends
    with pytest.raises(openai.APIError, match="engine"):
        await waiting

    assert (await alive.ask("phoenix")).model == f"phoenix@{second}"
    print(f"noticed after {noticed_s:.2f} s, back after {time.perf_counter() - start:.1f} s: {ends}")
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
        process = alive.engine
        process.suspend()
        asked.append(asyncio.create_task(alive.ask("phoenix")))
        await until(alive.backend.route.in_flight, "an answer is under way")
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


async def test_engine_and_trainer_killed_while_idle_the_next_call_of_train_just_works(
    alive: Alive, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, may_start = alive.backend.engine.start, asyncio.Event()

    async def held(spec: EngineSpec) -> Any:
        await may_start.wait()
        return await start(spec)

    monkeypatch.setattr(alive.backend.engine, "start", held)
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
    may_start.set()
    before = alive.backend.route.current().policy.step
    assert await alive.train() == before + 1
    assert (await alive.ask("phoenix")).model == f"phoenix@{before + 1}"
    await alive.whole()


async def test_killed_once_more_it_is_given_up_and_what_the_message_says_helps(alive: Alive) -> None:
    stored, killed = len(await alive.backend.store.list()), set[int]()

    async def given_up() -> bool:
        answer = await alive.health()
        if answer.status_code == 200 and (process := alive.engine).pid not in killed:
            killed.add(process.pid)
            process.kill()
        return answer.headers.get("x-should-retry") == "false"

    await until(given_up, "it is given up")
    assert (await alive.health()).status_code == 503
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
    born = await until(lambda: set(psutil.Process().children(recursive=True)) - before, "an engine is started")
    await alive.door.close()
    assert await survivors([*born, trainer]) == []
