"""A running backend: four started parts, the route and the gateway; opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from art_core.base_model import BaseIdentity, ModelInfo, require_same_base, require_trained_on
from art_core.checkpoint import StoredCheckpoint, write_manifest
from art_core.compose import Parts
from art_core.config import Timeouts
from art_core.errors import ConfigError, NoRouteError
from art_core.events import Observers
from art_core.gateway import Gateway
from art_core.policy import PublishedPolicy
from art_core.protocols.engine import Endpoint, EngineSpec, InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.publication import publish_elsewhere
from art_core.recovery import Recovery, unload_strays
from art_core.retention import Retention
from art_core.route import Lease, RouteTable
from art_core.run import RunDirectory
from art_core.tier import Durable, TieredStore
from art_core.worker import TrainerWorker

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is opened for."""

    name: str
    """The model's public name; a served step is ``<name>@<step>``."""
    run: RunDirectory
    engine: EngineSpec
    trainer: TrainerSpec
    timeouts: Timeouts = field(default_factory=Timeouts)
    durable: Durable = "local"
    retention: Retention = field(default_factory=Retention)


@dataclass
class TrainerPosition:
    """What is known of the trainer."""

    step: int | None
    """Which stored step its weights equal; None while that is unknown (a step failed half-way)."""
    disagreed: bool = False
    """Whether the user was told that engine and trainer compute different functions."""


@dataclass(frozen=True)
class Backend:
    """Everything a run needs, running. Closed by `close`, in reverse order of opening."""

    spec: BackendSpec
    parts: Parts
    store: TieredStore
    model: ModelInfo
    """The base model, as the engine serves it; the trainer holds the same."""
    slots: int
    """How many adapters the engine holds at once."""
    trainer_info: TrainerInfo
    route: RouteTable
    gateway: Gateway
    recovery: Recovery
    observers: Observers
    position: TrainerPosition
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever trains or deletes: one at a time."""
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def engine(self) -> InferenceEngine:
        """The inference engine."""
        return self.parts.engine

    @property
    def trainer(self) -> TrainerWorker:
        """The trainer."""
        return self.parts.trainer

    @property
    def publisher(self) -> Publisher:
        """The publisher."""
        return self.parts.publisher

    @property
    def base_identity(self) -> BaseIdentity:
        """The base model as manifests name it: by the user's name, which holds on other machines, too."""
        return self.model.identity.model_copy(update={"name": self.spec.engine.base_name})

    async def close(self) -> None:
        """Stop everything, newest first; idempotent."""
        await self.resources.aclose()


async def open_backend(parts: Parts, spec: BackendSpec, observers: Observers) -> Backend:
    """Start the parts and publish the newest stored step; a new run first stores the fresh adapter as step 0.

    Args:
        parts: Four parts, not started.
        spec: What for.
        observers: Who is told.

    Raises:
        ConfigError: Engine and trainer hold different base models, or another one than the run was trained on; or the
            engine has too few adapter slots.
        RunError: A part did not start, or the newest step can't be served; everything is stopped again.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, observers.close, spec.run.name)
        stack.callback(spec.run.close)
        store = TieredStore(spec.run, parts.store, spec.durable, spec.timeouts, spec.retention)
        stack.push_async_callback(store.close)
        newest = await store.open(spec.trainer.base_model)
        stack.push_async_callback(parts.engine.stop)
        stack.push_async_callback(parts.trainer.stop)
        start = time.monotonic()
        endpoint, info = await _start(parts, spec, newest)
        route = RouteTable(spec.name, spec.engine.base_name)
        gateway = Gateway(route, endpoint, timeouts=spec.timeouts)
        start_s = time.monotonic() - start
        gateway.start()
        stack.callback(gateway.close)
        recovery = Recovery(parts, spec.engine, endpoint, route, gateway, spec.timeouts)
        stack.push_async_callback(recovery.close)
        position, slots = TrainerPosition(newest.step if newest else None), endpoint.max_adapters
        backend = Backend(
            spec, parts, store, endpoint.model, slots, info, route, gateway, recovery, observers, position
        )
        newest = newest or await store_first_step(backend)
        await unload_strays(parts.engine, route)  # an engine that somebody else runs outlives a client that is killed
        route.flip(await parts.publisher.publish(route.public_name(newest.step), newest))
        await publish_elsewhere(parts.elsewhere, route.public_name(newest.step), newest)
        recovery.watch(start_s)
        backend.resources.push_async_exit(stack.pop_all())
        return backend


async def _start(parts: Parts, spec: BackendSpec, newest: StoredCheckpoint | None) -> tuple[Endpoint, TrainerInfo]:
    resume_from = newest.directory if newest else None
    endpoint, info = await _both(parts.engine.start(spec.engine), parts.trainer.start(spec.trainer, resume_from))
    require_same_base(endpoint.model, info.model)
    if newest is not None:
        require_trained_on(newest.manifest.base_model, info.model, newest.step)
    if endpoint.max_adapters < 2:
        raise ConfigError(
            f"engine {parts.engine_name!r} has {endpoint.max_adapters} adapter slot; at least 2 are needed: "
            f"the next step is loaded and proved while the last one serves"
        )
    return endpoint, info


async def store_first_step(backend: Backend) -> StoredCheckpoint:
    """Store the fresh adapter, which equals the base model, as step 0."""
    directory = backend.spec.run.stage()
    await backend.trainer.save(directory)
    checkpoint = await asyncio.to_thread(
        write_manifest,
        directory,
        run=backend.spec.run.name,
        step=0,
        base_model=backend.base_identity,
        versions=dict(backend.trainer_info.versions),
    )
    stored = await backend.store.commit(checkpoint)
    backend.position.step = 0
    return stored


async def publish(backend: Backend, stored: StoredCheckpoint) -> PublishedPolicy:
    """Free an adapter slot and publish a stored step (stage 6); the caller flips the route without awaiting in between.

    Old steps stay served for as long as slots allow; of those in the way the oldest go, once no request and no lease
    holds them. While the engine is down this waits for its recovery, and where it dies meanwhile it begins again.

    Raises:
        PublishTimeoutError: All slots stayed busy.
        EngineDiedError: The engine will not come back.
        RunError: The step could not be published.
    """
    return await _publish(backend, stored, backend.spec.timeouts.slot_s)


async def _publish(backend: Backend, stored: StoredCheckpoint, slot_s: float) -> PublishedPolicy:
    taken = await backend.route.make_room(backend.slots, keep=1, timeout_s=slot_s)

    async def load() -> PublishedPolicy:
        await _unload(backend, taken)
        return await backend.publisher.publish(backend.route.public_name(stored.step), stored)

    return await backend.recovery.run(load)


async def _unload(backend: Backend, taken: Sequence[PublishedPolicy]) -> None:
    for policy in taken:
        await backend.publisher.retract(policy)
    await unload_strays(backend.engine, backend.route)


async def hold(backend: Backend, step: int) -> Lease:
    """Lease a step; one that is stored but no longer served is published again under its own name, and proved.

    A step that is served is leased at once, also while another is being trained. One that is not waits for that,
    because an engine loads one adapter at a time. The default does not move.

    Args:
        backend: Open.
        step: A stored step, not newer than the default.

    Raises:
        NoRouteError: The step is not stored, or was never published.
        PublishTimeoutError: Every adapter slot is in use.
        PublishError: It can't be served.
    """
    if step not in backend.route.current().served:
        async with backend.lock:
            if step not in backend.route.current().served:
                await _serve_again(backend, step)
            return backend.route.lease(step)
    return backend.route.lease(step)


async def _serve_again(backend: Backend, step: int) -> None:
    newest = backend.route.current().policy.step
    stored = {each.step: each for each in await backend.store.list() if each.step <= newest}
    if step not in stored:
        raise NoRouteError(
            f"step {step} of {backend.spec.name!r} is neither served nor stored; stored: "
            f"{', '.join(map(str, stored)) or 'none'}",
            step=step,
        )
    policy = await _publish(backend, stored[step], slot_s=0)
    backend.route.flip(policy, keep_default=True)


async def _both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two side by side; where one fails the other is cancelled and awaited, and the failure is raised bare."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unload_idle(backend: Backend, keep: Collection[int] = ()) -> None:
    """Stop serving old steps that no request and no lease holds, and free their slots.

    Args:
        backend: Open, and locked by the caller.
        keep: Steps that stay besides.

    Raises:
        EngineDiedError: The engine will not come back.
    """
    with ExitStack() as held:
        for step in set(keep) & set(backend.route.current().served):
            held.enter_context(backend.route.lease(step))
        taken = backend.route.take_idle(keep=1)
    await backend.recovery.run(lambda: _unload(backend, taken))


async def delete_steps(backend: Backend, keep: Collection[int]) -> Sequence[int]:
    """Delete stored steps, never one that is served, leased or the newest.

    Args:
        backend: Open, and locked by the caller.
        keep: Steps to keep besides.

    Returns:
        The steps that were deleted.
    """
    stored = [checkpoint.step for checkpoint in await backend.store.list()]
    await unload_idle(backend)
    protected = set(keep) | set(backend.route.current().served) | {stored[-1]}
    return await backend.store.delete(set(stored) - protected, protected)
