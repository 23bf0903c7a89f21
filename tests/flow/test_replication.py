"""The whole line beside a store that does not answer: the flip waits for a copy only where that was asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from art_core.loop import train_step
from art_core.run_key import RunKey
from art_core.step import StepConfig
from art_core.testing.condition import LONGEST_S, until
from tests.art_core.faulty_store import FaultyStore
from tests.faults.life import PROJECT, RUN, groups, open_small


async def test_a_copy_that_hangs_does_not_hold_up_load_proof_and_flip(tmp_path: Path) -> None:
    remote = FaultyStore(tmp_path / "remote")
    backend = await open_small(tmp_path, remote)
    remote.gate.clear()
    for step in (1, 2):
        async with asyncio.timeout(LONGEST_S):
            outcome = await train_step(backend, groups(), StepConfig())
        assert backend.route.current().policy.step == outcome.policy.step == step
        assert outcome.metrics["store/lag_steps"] >= step
    assert len(await remote.list(RunKey(PROJECT, RUN))) <= 1, "step 0 at most was copied before the store hung"
    remote.gate.set()
    await until(lambda: not backend.store.metrics()["store/lag_steps"], "all is copied")
    await backend.close()
    assert [entry.step for entry in await remote.list(RunKey(PROJECT, RUN))] == [0, 1, 2]


async def test_asked_for_the_store_the_flip_waits_after_load_and_proof(tmp_path: Path) -> None:
    remote = FaultyStore(tmp_path / "remote")
    backend = await open_small(tmp_path, remote, "remote")
    remote.gate.clear()
    training = asyncio.create_task(train_step(backend, groups(), StepConfig()))

    async def loaded() -> bool:
        return f"{RUN}@1" in (await backend.engine.health()).adapters

    await until(loaded, "the step is loaded")
    assert not training.done() and backend.route.current().policy.step == 0, "it is loaded, and not yet the default"
    remote.gate.set()
    await training
    assert backend.route.current().policy.step == 1
    assert [entry.step for entry in await remote.list(RunKey(PROJECT, RUN))] == [0, 1]
    await backend.close()
