"""Leases on steps: real store, real publisher, real route; no processes.

The engine is a small numpy one (see its text for what it does not prove). The trainer and the gateway are not
touched by a lease and are left out, and nobody watches the engine; `tests/flow` drives the whole backend.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

import art
from art_core.backend import Backend, BackendSpec, TrainerPosition, delete_steps, hold, publish
from art_core.base_model import BaseIdentity, ModelInfo
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.compose import Parts
from art_core.config import LoRAConfig, Timeouts
from art_core.errors import CapabilityError, NoRouteError, PublishTimeoutError, RouteError
from art_core.policy import ProofKind
from art_core.preparation import prepare_supervised
from art_core.protocols.engine import Endpoint, EngineSpec
from art_core.protocols.trainer import TrainerSpec
from art_core.recovery import Recovery
from art_core.route import RouteTable
from art_core.run import RunDirectory
from art_core.supervised import SupervisedConfig
from art_core.tier import TieredStore
from tests.art_core.builtin.numpy_engine import NumpyEngine, Run

SLOTS = 3
PROVES = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run" / "checkpoints", 1e-2)


@pytest.fixture
def engine() -> NumpyEngine:
    return NumpyEngine()


@pytest.fixture
def backend(tmp_path: Path, engine: NumpyEngine) -> Backend:
    directory = RunDirectory(tmp_path / "run")
    nothing = cast(Any, None)
    publisher = ReloadPublisher(ReloadOptions(), engine, PROVES)
    info = ModelInfo(BaseIdentity(name="/cache/bigram", digest="0"), 48, 64, None, "float32")
    spec = BackendSpec(
        "agent",
        directory,
        EngineSpec("bigram", "bigram", 4, tmp_path / "engine.log"),
        TrainerSpec("bigram", LoRAConfig()),
        Timeouts(slot_s=5),
    )
    parts = Parts(engine, "numpy", PROVES, nothing, "none", Capabilities(), None, publisher)
    store = TieredStore(directory, None, "local", spec.timeouts, spec.retention)
    endpoint = Endpoint("http://127.0.0.1:9", "k", info, SLOTS)
    route = RouteTable("agent", "bigram")
    recovery = Recovery(parts, spec.engine, endpoint, route, nothing, spec.timeouts)
    return Backend(spec, parts, store, info, SLOTS, nothing, route, nothing, recovery, nothing, TrainerPosition(0))


async def served(backend: Backend, run: Run, count: int) -> Backend:
    for _ in range(count):
        backend.route.flip(await publish(backend, run.train()))
    return backend


def loaded(engine: NumpyEngine) -> set[str]:
    return set(engine.slots)


def test_manifests_name_the_base_model_as_the_user_does(backend: Backend) -> None:
    """Where it was found is another place on the next machine."""
    assert backend.base_identity == BaseIdentity(name="bigram", digest="0")


async def test_a_leased_step_is_neither_unloaded_nor_deleted(backend: Backend, run: Run, engine: NumpyEngine) -> None:
    await served(backend, run, 3)
    with await hold(backend, 1):
        await served(backend, run, 3)
        assert "agent@1" in loaded(engine)
        assert await delete_steps(backend, keep=[]) == [0, 2, 3, 4]
        assert [c.step for c in await backend.store.list()] == [1, 5]
        assert backend.route.inference_name(1) == "agent@1"
    assert await delete_steps(backend, keep=[]) == [1]
    assert loaded(engine) == {"agent@5"}


async def test_a_step_that_is_no_longer_served_is_proved_again_for_the_lease(
    backend: Backend, run: Run, engine: NumpyEngine
) -> None:
    await served(backend, run, 5)
    assert set(backend.route.current().served) == {2, 3, 4}
    with await hold(backend, 0) as lease:
        assert (lease.adapter, lease.step) == ("agent@0", 0)
        policy = backend.route.current().served[0]
        assert policy.proof.kind is ProofKind.WEIGHTS
        assert list(backend.route.current().served) == [0, 3, 4]
        assert backend.route.inference_name() == "agent@4"
        assert loaded(engine) == {"agent@0", "agent@3", "agent@4"}
        await served(backend, run, 2)
        assert "agent@0" in loaded(engine)
    await served(backend, run, 1)
    assert "agent@0" not in loaded(engine)


async def test_with_every_slot_held_a_lease_is_refused_at_once(backend: Backend, run: Run, engine: NumpyEngine) -> None:
    await served(backend, run, 4)
    before = loaded(engine)
    refused = pytest.raises(PublishTimeoutError, match=r"no adapter slot came free in 0 s.*leased: \[1, 2\]")
    with await hold(backend, 1), await hold(backend, 2), refused:
        await hold(backend, 0)
    assert loaded(engine) == before
    with await hold(backend, 0):
        assert "agent@0" in loaded(engine)


async def test_a_step_that_is_not_stored_or_was_never_served_is_refused(backend: Backend, run: Run) -> None:
    await served(backend, run, 2)
    run.train()  # stored, not served
    for step in (2, 9):
        with pytest.raises(NoRouteError, match=f"step {step} of 'agent' is neither served nor stored; stored: 0, 1"):
            await hold(backend, step)
    assert list(backend.route.current().served) == [0, 1]


async def test_a_served_step_is_leased_while_another_is_trained(backend: Backend, run: Run) -> None:
    await served(backend, run, 4)
    async with backend.lock:  # as `train` holds it
        async with asyncio.timeout(60):
            lease = await hold(backend, 2)
        waiting = asyncio.ensure_future(hold(backend, 0))
        await asyncio.sleep(0)
        assert not waiting.done()
    lease.release()
    (await waiting).release()


async def test_two_who_want_the_same_old_step_share_it(backend: Backend, run: Run, engine: NumpyEngine) -> None:
    await served(backend, run, 5)
    first, second = await asyncio.gather(hold(backend, 0), hold(backend, 0))
    first.release()
    with await hold(backend, 3), pytest.raises(PublishTimeoutError):
        await hold(backend, 1)
    second.release()
    assert "agent@0" in loaded(engine)


async def test_the_default_only_moves_forward(backend: Backend, run: Run) -> None:
    await served(backend, run, 2)
    policy = backend.route.current().policy
    with pytest.raises(RouteError, match="step 1 of 'agent' is not older than the default"):
        backend.route.flip(policy, keep_default=True)
    with pytest.raises(RouteError, match="not older than the default"):
        RouteTable("agent", "bigram").flip(policy, keep_default=True)


async def test_a_trainer_without_a_tokenizer_is_asked_for_no_supervised_step(backend: Backend) -> None:
    said = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    )
    with pytest.raises(CapabilityError, match="does not declare capability 'supervised'"):
        await prepare_supervised(backend, [said], SupervisedConfig())
