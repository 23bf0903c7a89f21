"""Recovery's decisions, before `mortal_engine` (its docstring says what that does not prove)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from art_core import recovery
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER
from art_core.compose import Parts
from art_core.config import Timeouts
from art_core.errors import EngineDiedError, EngineError, EngineUnavailableError, NoRouteError, PublishError
from art_core.gateway import Gateway
from art_core.policy import ProofKind
from art_core.protocols.engine import EngineSpec
from art_core.recovery import Recovery, unload_strays
from art_core.route import RouteTable
from art_core.testing.condition import LONGEST_S, until
from tests.art_core.builtin.numpy_engine import Run
from tests.art_core.fake_engine_http import BASE
from tests.art_core.mortal_engine import SILENT, MortalEngine

LOOK_S = 0.01


@dataclass
class Scene:
    """Steps 0, 1 and 2 served through a gateway by an engine that is looked after."""

    engine: MortalEngine
    publisher: ReloadPublisher
    route: RouteTable
    gateway: Gateway
    recovery: Recovery
    client: httpx.AsyncClient
    run: Run

    async def ask(self, model: str = "agent") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        return await self.client.post("/chat/completions", json=body)

    async def close(self) -> None:
        await self.client.aclose()
        await self.recovery.close()
        await asyncio.gather(self.engine.stop(), asyncio.to_thread(self.gateway.close))

    async def back(self) -> None:
        """Wait until the engine has come back, or will not."""
        async with asyncio.timeout(LONGEST_S):
            await until(lambda: self.engine.starts > self.engine.starts_before, "it is started again")
            await self.recovery.run(nothing)


async def nothing() -> None:
    pass


async def build(root: Path, **timeouts: Any) -> Scene:
    engine, route, run = MortalEngine(), RouteTable("agent", BASE), Run(root / "run", 0.01)
    spec, limits = EngineSpec(BASE, BASE, 4, root / "engine.log"), Timeouts(health_s=LOOK_S, **timeouts)
    publisher = ReloadPublisher(ReloadOptions(), engine, Capabilities({Capability.WEIGHT_PROOF: FULL}))
    endpoint = await engine.start(spec)
    for stored in [run.train() for _ in range(3)]:
        route.flip(await publisher.publish(route.public_name(stored.step), stored))
    gateway = Gateway(route, endpoint)
    gateway.start()
    unused: Any = None
    parts = Parts(engine, "mortal", Capabilities(), unused, "none", Capabilities(), unused, publisher)
    recovery = Recovery(parts, spec, endpoint, route, gateway, limits)
    recovery.watch(start_s=8)
    engine.starting.clear()
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    client = httpx.AsyncClient(base_url=gateway.base_url, headers=headers, timeout=120)
    return Scene(engine, publisher, route, gateway, recovery, client, run)


@asynccontextmanager
async def opened(root: Path, **timeouts: Any) -> AsyncIterator[Scene]:
    scene = await build(root, **timeouts)
    yield scene
    await scene.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Recovery's clock: seconds pass when a test says so."""
    made = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: made.now_s))
    return made


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(tmp_path) as each:
        yield each


async def test_a_dead_engine_is_refused_then_back_with_every_step_proved_anew(scene: Scene) -> None:
    before, address = scene.route.current(), scene.engine.http.endpoint.base_url
    scene.engine.may_start.clear()
    looks = scene.engine.looks
    await scene.engine.kill()
    await scene.engine.starting.wait()
    assert scene.engine.looks == looks + 1, "the next look finds it dead"
    for model in ("agent", "agent@1", BASE):
        refused = await scene.ask(model)
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 8
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert "is being started again" in refused.json()["error"]["message"]
    health = await scene.client.get(scene.gateway.base_url.removesuffix("/v1") + "/health")
    assert (health.status_code, "retry-after" in health.headers) == (503, True)

    scene.engine.may_start.set()
    await scene.back()
    assert scene.engine.http.endpoint.base_url != address
    for model, step in (("agent", 2), ("agent@0", 0), ("agent@1", 1), ("agent@2", 2)):
        assert (await scene.ask(model)).json()["choices"][0]["policy_step"] == step
    after = scene.route.current()
    assert after.policy.step == 2 and after.served[2] is after.policy
    assert list(after.served) == list(before.served)
    for step, policy in after.served.items():
        assert policy is not before.served[step]
        assert policy.proof.kind is ProofKind.WEIGHTS
        assert policy.proof.slot_digest == before.served[step].proof.slot_digest
    assert scene.engine.starts == 2


async def test_no_request_is_served_before_everything_is_proved(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is up and has loaded, and still the gateway refuses until the last proof."""
    asked, real = [], scene.publisher.publish

    async def publish(name: str, stored: Any) -> Any:
        policy = await real(name, stored)
        asked.append((await scene.ask(name)).status_code)
        return policy

    monkeypatch.setattr(scene.publisher, "publish", publish)
    await scene.engine.kill()
    await scene.back()
    assert asked == [503, 503, 503]
    assert (await scene.ask()).status_code == 200


async def test_an_older_step_that_is_damaged_goes_and_the_rest_comes_back(scene: Scene) -> None:
    lease = scene.route.lease(1)
    (scene.run.root / "0001" / ADAPTER).write_bytes(b"damaged")
    await scene.engine.kill()
    await scene.back()
    assert list(scene.route.current().served) == [0, 2]
    assert scene.engine.paths.keys() == {"agent@0", "agent@2"}
    with pytest.raises(NoRouteError, match="step 1 of 'agent' is not served; served: 0, 2"):
        scene.route.inference_name(1)
    lease.release()
    assert scene.engine.starts == 2


async def test_a_default_that_cannot_be_proved_is_never_served(scene: Scene) -> None:
    (scene.run.root / "0002" / ADAPTER).write_bytes(b"damaged")
    await scene.engine.kill()
    with pytest.raises(EngineDiedError, match=r"not started again.*Last: CheckpointCorruptError"):
        await scene.back()
    assert scene.engine.starts == 1 + Timeouts().engine_restarts
    assert (await scene.ask()).status_code == 503


async def test_an_engine_that_goes_on_dying_is_given_up(scene: Scene) -> None:
    for _ in range(Timeouts().engine_restarts):
        await scene.engine.kill()
        await scene.back()
        assert (await scene.ask()).status_code == 200
        scene.recovery.require()
    await scene.engine.kill()
    async with asyncio.timeout(LONGEST_S):
        while (answer := await scene.ask()).headers.get("x-should-retry") != "false":
            assert answer.status_code == 503
    assert answer.status_code == 503
    assert "retry-after" not in answer.headers
    message = answer.json()["error"]["message"]
    for part in ("died 4 times within 600 s", "engine.log", "register the model again", "SIGKILL"):
        assert part in message
    with pytest.raises(EngineDiedError, match="register the model again") as refused:
        scene.recovery.require()
    assert isinstance(refused.value, EngineUnavailableError) and not refused.value.retryable
    with pytest.raises(EngineDiedError):
        await scene.recovery.run(nothing)
    assert scene.engine.starts == 4


async def test_starts_that_fail_count_and_the_last_one_may_succeed(scene: Scene) -> None:
    scene.engine.failing_starts = 3  # the first was the fixture's
    await scene.engine.kill()
    await scene.back()
    assert scene.engine.starts == 4
    assert (await scene.ask()).json()["choices"][0]["policy_step"] == 2


async def test_deaths_are_forgotten_after_the_window(tmp_path: Path) -> None:
    async with opened(tmp_path, engine_restart_window_s=0) as scene:
        for _ in range(2 * Timeouts().engine_restarts):
            await scene.engine.kill()
            await scene.back()
        assert (await scene.ask()).status_code == 200


async def test_the_time_that_starts_take_does_not_shorten_the_memory(scene: Scene, clock: SimpleNamespace) -> None:
    """Starts that each outlast the window: a real engine's may, and would be repeated for ever."""
    scene.engine.failing_starts = 100

    async def slow_start(spec: EngineSpec, real: Callable[..., Any] = scene.engine.start) -> Any:
        clock.now_s += 2 * Timeouts().engine_restart_window_s
        return await real(spec)

    scene.engine.start = slow_start
    await scene.engine.kill()
    with pytest.raises(EngineDiedError, match="start 4 fails"):
        await scene.back()


async def test_what_it_died_under_is_done_again(scene: Scene) -> None:
    stored, tries = scene.run.train(), []

    async def publish() -> Any:
        tries.append(scene.engine.starts)
        if len(tries) == 1:
            await scene.engine.kill()
        return await scene.publisher.publish("agent@3", stored)

    policy = await scene.recovery.run(publish)
    scene.route.flip(policy)
    assert tries == [1, 2]
    assert policy.proof.kind is ProofKind.WEIGHTS
    assert (await scene.ask()).json()["choices"][0]["policy_step"] == 3


async def test_an_error_of_a_living_engine_is_raised_and_restarts_nothing(scene: Scene) -> None:
    async def refuse() -> None:
        raise EngineError("no slot is free")

    with pytest.raises(EngineError, match="no slot"):
        await scene.recovery.run(refuse)
    assert scene.engine.starts == 1


async def test_a_publication_waits_for_the_engine_instead_of_failing(scene: Scene) -> None:
    scene.engine.may_start.clear()
    await scene.engine.kill()
    await scene.engine.starting.wait()
    stored = scene.run.train()
    publishing = asyncio.create_task(scene.recovery.run(lambda: scene.publisher.publish("agent@3", stored)))
    await asyncio.wait({publishing}, timeout=5 * LOOK_S)
    assert not publishing.done()
    scene.engine.may_start.set()
    assert (await publishing).step == 3
    assert scene.engine.paths.keys() == {"agent@0", "agent@1", "agent@2", "agent@3"}


async def test_a_step_taken_while_the_engine_was_down_does_not_come_back(scene: Scene) -> None:
    scene.engine.may_start.clear()
    await scene.engine.kill()
    await scene.engine.starting.wait()
    lease = scene.route.lease(1)
    assert [policy.step for policy in scene.route.take_idle(keep=1)] == [0]
    scene.engine.may_start.set()
    await scene.back()
    assert list(scene.route.current().served) == [1, 2]
    assert scene.engine.paths.keys() == {"agent@1", "agent@2"}
    lease.release()


async def test_a_step_taken_during_its_own_publication_does_not_come_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scene.publisher.publish

    async def publish(name: str, stored: Any) -> Any:
        policy = await real(name, stored)
        scene.route.take_idle(keep=1)
        return policy

    monkeypatch.setattr(scene.publisher, "publish", publish)
    await scene.engine.kill()
    await scene.back()
    assert list(scene.route.current().served) == [2]
    assert scene.engine.paths.keys() == {"agent@2"}


async def test_strays_are_unloaded_and_others_left_alone(scene: Scene) -> None:
    """A step that was taken, and whose unloading failed, would hold its slot for ever."""
    scene.engine.paths |= {"agent@7": Path("/old"), "agents@7": Path("/other"), "mine": Path("/mine")}
    await unload_strays(scene.engine, scene.route)
    assert scene.engine.paths.keys() == {"agent@0", "agent@1", "agent@2", "agents@7", "mine"}


@pytest.mark.parametrize("error", [SILENT, TypeError("a defect of the plugin's")])
async def test_silence_is_death_only_after_long(scene: Scene, clock: SimpleNamespace, error: Exception) -> None:
    scene.engine.silent = error
    for _ in range(2):
        clock.now_s += 0.4 * Timeouts().engine_silence_s
        looks = scene.engine.looks
        await until(lambda looks=looks: scene.engine.looks >= looks + 2, "it is looked at")
        assert scene.engine.starts == 1
    clock.now_s += Timeouts().engine_silence_s
    await scene.back()
    assert scene.engine.starts == 2
    assert (await scene.ask()).status_code == 200


async def test_a_pause_is_no_death(scene: Scene) -> None:
    scene.engine.silent, looks = SILENT, scene.engine.looks
    await until(lambda: scene.engine.looks >= looks + 5, "it is looked at")
    assert (await scene.ask()).status_code == 200
    scene.engine.silent = None
    assert scene.engine.starts == 1


async def test_a_health_that_never_returns_is_silence(tmp_path: Path) -> None:
    async with opened(tmp_path, engine_silence_s=0.1) as scene:
        real = scene.engine.health

        async def hang() -> Any:
            return await (asyncio.Event().wait() if scene.engine.starts == 1 else real())

        scene.engine.health = hang
        await scene.back()
        assert scene.engine.starts == 2


async def test_closing_during_a_start_ends_it_and_tells_who_waits(scene: Scene) -> None:
    scene.engine.may_start.clear()
    await scene.engine.kill()
    await scene.engine.starting.wait()
    waiting = asyncio.create_task(scene.recovery.run(nothing))
    await asyncio.sleep(0)
    await scene.recovery.close()
    with pytest.raises(EngineDiedError, match="the backend is closed"):
        await waiting
    await scene.recovery.close()
    assert scene.engine.starts == 2 and scene.engine.dead


async def test_a_failed_publication_is_still_its_own_error_when_the_engine_is_silent(scene: Scene) -> None:
    scene.engine.silent = SILENT
    with pytest.raises(PublishError, match="no answer"):
        await scene.recovery.run(lambda: scene.publisher.publish("agent@3", scene.run.train()))
    scene.engine.silent = None


@pytest.mark.parametrize("half_way", [False, True], ids=["idle", "in the middle of a start"])
def test_a_second_event_loop_takes_over_from_one_that_has_ended(tmp_path: Path, half_way: bool) -> None:
    """As a program does that calls `asyncio.run` once per call of ours."""

    async def first() -> Scene:
        scene = await build(tmp_path)
        if half_way:
            scene.engine.may_start.clear()
            await scene.engine.kill()
            await scene.engine.starting.wait()
        return scene

    async def second(scene: Scene) -> None:
        scene.engine.may_start.set()
        stored = scene.run.train()
        scene.route.flip(await scene.recovery.run(lambda: scene.publisher.publish("agent@3", stored)))
        assert (await scene.ask()).json()["choices"][0]["policy_step"] == 3
        await scene.close()

    scene = asyncio.run(first())
    if not half_way:
        asyncio.run(scene.engine.kill())
    asyncio.run(second(scene))
    assert scene.engine.starts == (3 if half_way else 2)
