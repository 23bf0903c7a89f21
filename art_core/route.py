"""Which step answers which name: `name` is the default, `name@k` step k, the base model's name the base.

One table per backend, shared by the loop (which publishes) and the gateway (which serves, in another thread with
another event loop). One lock, held for dictionary work only; nothing here blocks but `make_room`, which awaits.

A step is served from `flip` until it is taken. Taking is atomic with resolution: a step that a request or a lease
holds is never taken, and a taken step can't be acquired any more, so its adapter can be unloaded without harm.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

from art_core.errors import ConfigError, NoRouteError, PublishTimeoutError, RouteError, nearest
from art_core.policy import PublishedPolicy


@dataclass(frozen=True)
class Route:
    """What is served at one instant."""

    policy: PublishedPolicy
    """The default: the newest published step."""
    served: Mapping[int, PublishedPolicy]
    """Step to policy, by rising step, the default included."""


@dataclass(frozen=True, eq=False)
class Lease:
    """Keeps one step served until released; a context manager.

    Releasing is idempotent and may happen in any thread.
    """

    adapter: str
    """The name to send to the engine, which is also the public name that answers."""
    step: int | None
    """The step; None for the base model."""
    request: bool
    """Whether one request holds it, rather than a caller who pins the step."""
    _release: Callable[[Lease], None] = field(repr=False)

    def release(self) -> None:
        """Let the step go."""
        self._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RouteTable:
    """Names, leases and drain; see the module's text. Every method may be called from any thread.

    Args:
        name: The model's public name.
        base_name: The name under which the engine serves the base model.

    Raises:
        ConfigError: The two names are the same, so that the base model could not be told from the policy.
    """

    def __init__(self, name: str, base_name: str) -> None:
        if name == base_name:
            raise ConfigError(f"the model's name {name!r} is also the base model's; give the model another name")
        self.name = name
        self.base_name = base_name
        self._lock = threading.Lock()
        self._route: Route | None = None
        self._held: set[Lease] = set()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def public_name(self, step: int) -> str:
        """The name of a step, served or not: ``<name>@<step>``."""
        return f"{self.name}@{step}"

    def flip(
        self, policy: PublishedPolicy, *, keep_default: bool = False, beside: Iterable[PublishedPolicy] | None = None
    ) -> Route:
        """Make a published step the default; requests in flight keep the step they started with.

        Args:
            policy: A step newer than the default; any step where nothing is served yet.
            keep_default: Serve a step older than the default beside it instead.
            beside: Given where the engine was started again: the default may stay the same step, and older steps that
                are still served take these policies, or go if they are not among these. None: they stay as they are.

        Returns:
            What is served from now on.

        Raises:
            RouteError: The step is not newer (older) than the default, or it is published under another name
                than its public one; the route has not moved.
        """
        if policy.name != self.public_name(policy.step):
            raise RouteError(
                f"step {policy.step} is published as {policy.name!r}; the route serves it as "
                f"{self.public_name(policy.step)!r}",
                step=policy.step,
            )
        with self._lock:
            route = self._route
            newest = route.policy.step if route is not None else -1
            if keep_default and policy.step >= newest:
                raise RouteError(f"step {policy.step} of {self.name!r} is not older than the default", step=policy.step)
            if not keep_default and policy.step < newest + (beside is None):
                raise RouteError(
                    f"step {policy.step} can't become the default of {self.name!r}: step {newest} "
                    f"is served already, and the default only moves forward",
                    step=policy.step,
                )
            served = dict(route.served) if route is not None else {}
            if beside is not None:
                served = {each.step: each for each in beside if each.step in served}
            served[policy.step] = policy
            default = route.policy if keep_default and route is not None else policy
            self._route = Route(default, MappingProxyType({step: served[step] for step in sorted(served)}))
            self._wake()
            return self._route

    def current(self) -> Route:
        """What is served now.

        Raises:
            NoRouteError: Nothing is published yet.
        """
        route = self._route
        if route is None:
            raise NoRouteError(f"nothing of {self.name!r} is published yet; register the model first")
        return route

    def names(self) -> tuple[str, ...]:
        """Every name that a request may ask for now."""
        route = self._route
        served = (self.name, *(p.name for p in route.served.values())) if route is not None else ()
        return (*served, self.base_name)

    def inference_name(self, step: int | None = None) -> str:
        """The name that pins a served step.

        Args:
            step: Which one; None: the default of now.

        Raises:
            NoRouteError: The step is not served, or nothing is published yet.
        """
        return (self.current().policy if step is None else self._served(step)).name

    def acquire(self, model: str) -> Lease:
        """Start a request.

        Args:
            model: ``name`` (the default), ``name@k`` or the base model's name.

        Returns:
            A lease to be released when the request is over.

        Raises:
            NoRouteError: Nothing answers to that name.
        """
        with self._lock:
            if model == self.base_name:
                return self._hold(self.base_name, None, request=True)
            if model == self.name:
                policy = self.current().policy
                return self._hold(policy.name, policy.step, request=True)
            for policy in self._route.served.values() if self._route is not None else ():
                if policy.name == model:
                    return self._hold(policy.name, policy.step, request=True)
        raise NoRouteError(f"no model {model!r} is served; {nearest(model, self.names())}")

    def lease(self, step: int) -> Lease:
        """Keep a served step served for as long as the caller needs it, e.g. for an evaluation.

        Raises:
            NoRouteError: The step is not served.
        """
        with self._lock:
            return self._hold(self._served(step).name, step, request=False)

    def take_idle(self, keep: int) -> tuple[PublishedPolicy, ...]:
        """Stop serving old steps that nothing holds; the caller retracts them.

        Args:
            keep: How many of the newest steps stay, the default among them; at least 1.

        Returns:
            The steps taken, oldest first; from now on their names answer to nobody.

        Raises:
            RouteError: `keep` is below 1.
        """
        if keep < 1:
            raise RouteError(f"keep is {keep}; at least 1: the default is never taken")
        with self._lock:
            return self._take(self._idle(keep))

    async def make_room(self, live: int, keep: int, timeout_s: float) -> tuple[PublishedPolicy, ...]:
        """Stop serving the oldest idle steps until fewer than `live` are served; wait while too many are held.

        Requests and leases are never cut: they hold the publication back. Works on any event loop.

        Args:
            live: Adapters that the engine can hold, the next step's included.
            keep: How many of the newest steps stay whatever happens; at least 1, below `live`.
            timeout_s: Longest wait, seconds.

        Returns:
            The steps taken, oldest first and no more than needed, to be retracted before the next load.

        Raises:
            RouteError: `keep` and `live` leave no room for another step at all.
            PublishTimeoutError: They stayed held.
        """
        if not 1 <= keep < live:
            raise RouteError(
                f"{live} adapter slots can't hold the newest {keep} steps and the next one; allowed: 1 <= keep < slots"
            )
        changed = asyncio.Event()
        waiter = (asyncio.get_running_loop(), changed)
        with self._lock:
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while (taken := self._take_down_to(live - 1, keep)) is None:
                    await changed.wait()
                    changed.clear()
                return taken
        except TimeoutError as error:
            raise PublishTimeoutError(
                f"no adapter slot came free in {timeout_s:g} s: {live} steps are served and in use (requests per step: "
                f"{self.in_flight()}, leased: {self._leased()}); let them finish, or give the engine more slots"
            ) from error
        finally:
            with self._lock:
                self._waiters.remove(waiter)

    def in_flight(self) -> dict[int | None, int]:
        """Requests under way per step; None is the base model."""
        with self._lock:
            return dict(Counter(lease.step for lease in self._held if lease.request))

    def _leased(self) -> list[int]:
        with self._lock:
            return sorted({lease.step for lease in self._held if lease.step is not None and not lease.request})

    def _served(self, step: int) -> PublishedPolicy:
        served = self.current().served
        if step not in served:
            raise NoRouteError(
                f"step {step} of {self.name!r} is not served; served: {', '.join(map(str, served))}", step=step
            )
        return served[step]

    def _hold(self, adapter: str, step: int | None, *, request: bool) -> Lease:
        lease = Lease(adapter, step, request, self._release)
        self._held.add(lease)
        return lease

    def _release(self, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)
            self._wake()

    def _wake(self) -> None:
        # inside the lock: a waiter leaves the list under it, so its loop can't have been closed yet
        for loop, changed in self._waiters:
            loop.call_soon_threadsafe(changed.set)

    def _idle(self, keep: int) -> list[PublishedPolicy]:
        """Steps older than the newest `keep` that nothing holds, oldest first; lock held."""
        served = list(self._route.served.values()) if self._route is not None else []
        held = {lease.step for lease in self._held}
        return [policy for policy in served[:-keep] if policy.step not in held]

    def _take(self, policies: list[PublishedPolicy]) -> tuple[PublishedPolicy, ...]:
        """Remove steps from what is served; lock held."""
        if self._route is not None and policies:
            gone = {policy.step for policy in policies}
            left = {step: policy for step, policy in self._route.served.items() if step not in gone}
            self._route = Route(self._route.policy, MappingProxyType(left))
            self._wake()
        return tuple(policies)

    def _take_down_to(self, count: int, keep: int) -> tuple[PublishedPolicy, ...] | None:
        """Take as many as leaves `count` served, or none at all (None) while too many are held."""
        with self._lock:
            surplus = len(self._route.served) - count if self._route is not None else 0
            idle = self._idle(keep)
            return self._take(idle[: max(surplus, 0)]) if surplus <= len(idle) else None
