"""Sees the engine die and brings it back: started again, every served step loaded and proved again, then served.

    dead -> requests refused -> stopped -> started -> steps published again -> route -> gateway follows

Runs as a task of the event loop in which the model was registered, or of the one that calls `train` next where that
has ended; a program that blocks the loop delays it. It and whoever else asks the engine for adapters take turns, so
that a publication never meets a start. What a failed call left in a living engine goes too: the engine holds what the
route serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from art_core.base_model import require_same_base
from art_core.compose import Parts
from art_core.config import Timeouts
from art_core.engine_client import Outage
from art_core.errors import EngineDiedError, RunError
from art_core.gateway import Gateway
from art_core.policy import PublishedPolicy
from art_core.protocols.engine import Endpoint, EngineSpec, InferenceEngine
from art_core.route import RouteTable

T = TypeVar("T")

_log = logging.getLogger("art.recovery")


class Recovery:
    """Keeps one engine alive; see the module's text.

    Args:
        parts: The engine, started, and the publisher.
        spec: What the engine was started with, and is again.
        endpoint: Where it answered first.
        route: What it serves.
        gateway: Who follows it.
        timeouts: `health_s`, `engine_silence_s`, `engine_restarts` and `engine_restart_window_s` are used.
    """

    def __init__(
        self,
        parts: Parts,
        spec: EngineSpec,
        endpoint: Endpoint,
        route: RouteTable,
        gateway: Gateway,
        timeouts: Timeouts,
    ) -> None:
        self._engine = parts.engine
        self._publisher = parts.publisher
        self._spec = spec
        self._endpoint = endpoint
        self._route = route
        self._gateway = gateway
        self._timeouts = timeouts
        self._start_s = 1.0
        self._turn, self._settled = asyncio.Lock(), asyncio.Event()
        self._settled.set()
        self._lost: str | None = None
        self._silent_since: float | None = None
        self._restarts: deque[float] = deque()
        self._starting_s = 0.0
        self._reason = ""
        self._task: asyncio.Task[None] | None = None

    def watch(self, start_s: float) -> None:
        """Look after the engine from now on.

        Args:
            start_s: How long it took to come up, seconds: what clients are told should it die.
        """
        self._start_s = start_s
        self._gateway.follow(self._endpoint, start_s)
        self._task = asyncio.create_task(self._watch(), name="art-recovery")

    async def close(self) -> None:
        """Look no more, and leave no start half-way; who waits for the engine is told. Idempotent."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose("the backend is closed; register the model again")

    def require(self) -> None:
        """Refuse, before any work, what needs an engine that will not come back.

        Raises:
            EngineDiedError: It died too often; the message says what to do.
        """
        if self._lost is not None:
            raise EngineDiedError(self._lost)
        if self._task is not None and self._task.done():  # its event loop has ended; asyncio's locks end with theirs
            settled, self._turn, self._settled = self._settled.is_set(), asyncio.Lock(), asyncio.Event()
            if settled:
                self._settled.set()
            self._task = asyncio.create_task(self._watch(), name="art-recovery")

    async def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do something with the engine's adapters: alone, with the engine up, again if it dies meanwhile.

        Args:
            action: What to do; it must stand being done again in an engine that holds what the route serves.

        Raises:
            EngineDiedError: The engine will not come back.
        """
        while True:
            self.require()
            await self._settled.wait()
            async with self._turn:
                self.require()
                try:
                    return await action()
                except RunError as error:
                    await self._look()
                    if self._settled.is_set():
                        raise
                    _log.warning("the engine died under a call, which is made again once it is back: %s", error)

    async def _watch(self) -> None:
        while self._lost is None:
            await asyncio.sleep(self._timeouts.health_s)
            await self._look()
            if not self._settled.is_set():
                await self._recover()

    async def _look(self) -> None:
        """Ask the engine how it is; where it is dead, requests are refused from here on."""
        asked = time.monotonic()
        try:
            async with asyncio.timeout(self._timeouts.engine_silence_s):
                await self._engine.health()
        except EngineDiedError as error:
            self._suspend(str(error))
        except Exception as error:  # noqa: BLE001 - an engine is foreign code; whatever it raises is no healthy answer
            self._silent_since = self._silent_since or asked
            silent_s = time.monotonic() - self._silent_since
            if silent_s >= self._timeouts.engine_silence_s:
                self._suspend(f"the engine has not answered for {silent_s:.0f} s: {error!r}")
        else:
            self._silent_since = None

    def _suspend(self, reason: str) -> None:
        if not self._settled.is_set():
            return
        self._settled.clear()
        self._silent_since = None
        self._reason = reason
        _log.warning("the engine is dead and is started again: %s", reason)
        outage = "the engine has died and is being started again; try again in a few seconds"
        self._gateway.suspend(Outage(outage, time.monotonic() + self._start_s))

    async def _recover(self) -> None:
        async with self._turn:
            while not self._settled.is_set():
                start = time.monotonic()
                if not self._may_restart(start - self._starting_s):
                    self._lose(self._too_often())
                    await self._engine.stop()
                    return
                try:
                    await self._restart()
                except Exception as error:  # noqa: BLE001 - engine and publisher are foreign code
                    self._reason = f"{type(error).__name__}: {error}"
                    _log.warning("the engine could not be brought back: %s", self._reason)
                self._starting_s += time.monotonic() - start

    def _may_restart(self, now_s: float) -> bool:
        """Count one more start, or refuse it; on a clock that stands still during starts."""
        while self._restarts and self._restarts[0] <= now_s - self._timeouts.engine_restart_window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._timeouts.engine_restarts:
            return False
        self._restarts.append(now_s)
        return True

    async def _restart(self) -> None:
        start = time.monotonic()
        await self._engine.stop()
        endpoint = await self._engine.start(self._spec)
        require_same_base(endpoint.model, self._endpoint.model)
        *older, default = await self._republish()
        self._route.flip(default, beside=older)
        await unload_strays(self._engine, self._route)
        self._start_s = time.monotonic() - start
        self._gateway.follow(endpoint, self._start_s)
        self._settled.set()
        _log.info("the engine is back after %.1f s and serves %s", self._start_s, ", ".join(self._route.names()))

    async def _republish(self) -> list[PublishedPolicy]:
        """Load and prove what was served, oldest first, so that each finds the step before it to compare with."""
        route, proved = self._route.current(), list[PublishedPolicy]()
        for policy in route.served.values():
            try:
                proved.append(await self._publisher.publish(policy.name, policy.stored))
            except RunError as error:
                await self._engine.health()  # dead again: then this start has failed, and not this step
                if policy is route.policy:
                    raise
                _log.error("%s is not served any more, because it could not be published again: %s", policy.name, error)
        return proved

    def _lose(self, why: str) -> None:
        self._lost = why
        self._gateway.suspend(Outage(why, None))
        self._settled.set()

    def _too_often(self) -> str:
        limit = self._timeouts
        message = (
            f"the engine has died {limit.engine_restarts + 1} times within {limit.engine_restart_window_s:g} s and is "
            f"not started again; every committed step is kept. See why in {self._spec.log_path}, then close the "
            f"backend and register the model again. Last: {self._reason}"
        )
        _log.error("%s", message)
        return message


async def unload_strays(engine: InferenceEngine, route: RouteTable) -> None:
    """Unload the steps that the engine holds and the route has forgotten: calls that failed half-way leave them.

    Args:
        engine: Started.
        route: What it should hold; adapters whose names are no step of the route's model are left alone.

    Raises:
        EngineUnavailableError: The engine does not answer.
    """
    for name in (await engine.health()).adapters:
        if name.startswith(f"{route.name}@") and name not in route.names():
            await engine.unload_adapter(name)
