"""A registered model on a real engine and the torch trainer, whose engine's processes are killed one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

import art
from art.local import LocalBackend
from art_core.backend import Backend
from art_core.config import PartOptions, Timeouts
from art_core.policy import ProofKind
from art_core.process import Child
from art_core.testing.condition import NOTICED_S, until, within
from art_core.testing.family import descendants, survivors
from tests.flow.agent import by_length, gather

LOOKS = int(2.0 / Timeouts().health_s)
"""Of these one must have found a dead engine, two seconds after it died: counted, because a machine that does much else
takes its time for each."""
PROJECT = "faults"


@dataclass
class Life:
    """A model that is served and trained."""

    model: art.TrainableModel
    door: LocalBackend
    groups: list[art.TrajectoryGroup]
    child: Callable[[Any], Child]
    """The process of an engine that runs."""

    @property
    def backend(self) -> Backend:
        return self.door._sessions[PROJECT, self.model.name].backend

    @property
    def processes(self) -> list[psutil.Process]:
        """The engine's: the server and what it started."""
        server = psutil.Process(self.child(self.backend.engine).pid)
        return [server, *server.children(recursive=True)]

    def one(self, title: str) -> psutil.Process:
        """The engine's process that is called so."""
        return next(each for each in self.processes if title in " ".join(each.cmdline()))

    async def noticed(self, killed: psutil.Process) -> float:
        """Kill it, and wait until core knows and the engine has been taken down; seconds until core knew."""
        before, looks, engine = self.processes, list[float](), self.backend.engine
        running, look = engine._running, engine.health  # type: ignore[attr-defined]

        async def counted() -> Any:
            looks.append(time.perf_counter())
            return await look()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "health", counted)
            start = time.perf_counter()
            killed.kill()
            with within(NOTICED_S, "a killed process is noticed"):
                await until(lambda: engine._running is not running, "a killed process is noticed")  # type: ignore[attr-defined]
            noticed_s = time.perf_counter() - start
        assert len(looks) <= LOOKS
        assert not await survivors(before, timeout_s=60), "no process of the engine outlives another"
        return noticed_s

    async def noticed_at_work(self, title: str, count: int = 3) -> float:
        """Kill the engine's process that is called so while it is at one answer and others wait; as `noticed`.

        It is suspended once the first token has come, so that none of them can end by itself, however fast it is.
        """
        process, fields = self.one(title), {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
        begun = await self.ask(self.model.name, stream=True, **fields)
        await anext(begun)
        process.suspend()
        rest = asyncio.create_task(finish(begun))
        waiting = [asyncio.create_task(self.ask(self.model.name, **fields)) for _ in range(count)]

        async def all_in() -> bool:
            others = count + (not rest.done())
            return (await self.backend.engine.health()).running_requests == others

        await until(all_in, "the engine has all requests")
        noticed_s = await self.noticed(process)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, openai.APIError) for end in ends), ends
        assert await rest in {"cut", "length"}
        return noticed_s

    async def ask(self, name: str, **fields: Any) -> Any:
        """One completion, not tried again."""
        messages = [{"role": "user", "content": "Hi"}]
        client = self.model.openai_client().with_options(max_retries=0)
        return await client.chat.completions.create(model=name, messages=messages, **{"max_tokens": 2, **fields})

    async def train(self) -> int:
        """A step, which must be proved; its number."""
        result = await self.door.train(self.model, self.groups, learning_rate=1e-4)
        assert result.metrics["publish/proved"] == 1.0
        return result.step

    async def whole(self) -> None:
        """The engine holds exactly what the route serves, each step proved by its weights, and the newest answers."""
        route = self.backend.route.current()
        for policy in route.served.values():
            assert policy.proof.kind is ProofKind.WEIGHTS
        held = (await self.backend.engine.health()).adapters
        assert dict(held) == {policy.name: policy.stored.directory for policy in route.served.values()}
        assert (await self.ask(self.model.name)).model == route.policy.name


def suspend_trainer(door: LocalBackend, model: art.TrainableModel) -> int:
    """Suspend the trainer's process; its id."""
    process_id = door._sessions[model.project, model.name].backend.trainer.process_id
    psutil.Process(process_id).suspend()
    return process_id


async def asked_for_a_step(door: LocalBackend, model: art.TrainableModel) -> None:
    """Wait until the trainer, whose process is suspended, is asked for a step.

    One that is killed before that is started again by the same call of train, which then succeeds.
    """
    position = door._sessions[model.project, model.name].backend.position
    await until(lambda: position.step is None, "the trainer is asked for a step")


async def finish(stream: Any) -> str:
    """How a stream ends: ``cut`` with an error, or as its last chunk says; empty where it just stops."""
    reason = ""
    try:
        async for chunk in stream:
            reason = (chunk.choices and chunk.choices[0].finish_reason) or reason
    except openai.APIError:
        return "cut"
    return reason


@asynccontextmanager
async def lived(
    name: str, options: PartOptions, base_model: Path, root: Path, child: Callable[[Any], Child]
) -> AsyncIterator[Life]:
    """Register a model; when the block ends no process may be left."""
    model = art.TrainableModel(name=name, project=PROJECT, base_model=str(base_model))
    before = descendants().keys()
    async with LocalBackend(path=root, engine=options, trainer="torch") as door:
        await model.register(door)
        yield Life(model, door, await gather(model, by_length), child)
        ours = [process for pid, process in descendants().items() if pid not in before]
    assert not await survivors(ours), "closing leaves no process"
