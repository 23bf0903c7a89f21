"""The route table: what names resolve to, what drain takes, and that neither can go wrong from several threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from art_core.base_model import BaseIdentity
from art_core.checkpoint import Manifest, StoredCheckpoint
from art_core.errors import ConfigError, NoRouteError, PublishTimeoutError, RouteError
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.route import Lease, RouteTable
from tests.staged import FILES

BASE = "Qwen/Qwen3-0.6B"


def policy(step: int, name: str | None = None) -> PublishedPolicy:
    manifest = Manifest(run="run", step=step, base_model=BaseIdentity(name=BASE, digest="d"), files=FILES)
    return PublishedPolicy(name or f"agent@{step}", StoredCheckpoint(Path("/nowhere"), manifest), Proof(ProofKind.NONE))


def table(*steps: int) -> RouteTable:
    route = RouteTable("agent", BASE)
    for step in steps:
        route.flip(policy(step))
    return route


def steps_of(policies: tuple[PublishedPolicy, ...]) -> list[int]:
    return [each.step for each in policies]


def test_before_the_first_flip_only_the_base_answers() -> None:
    route = table()
    with pytest.raises(NoRouteError, match="nothing of 'agent' is published yet"):
        route.current()
    with pytest.raises(NoRouteError, match="nothing of 'agent'"):
        route.acquire("agent")
    with pytest.raises(NoRouteError, match="nothing of 'agent'"):
        route.inference_name()
    lease = route.acquire(BASE)
    assert (lease.adapter, lease.step) == (BASE, None)
    assert route.names() == (BASE,)


def test_names_resolve() -> None:
    route = table(3, 4)
    assert route.inference_name() == "agent@4"
    assert route.inference_name(3) == "agent@3"
    assert route.names() == ("agent", "agent@3", "agent@4", BASE)
    for asked, adapter, step in (("agent", "agent@4", 4), ("agent@3", "agent@3", 3), (BASE, BASE, None)):
        with route.acquire(asked) as lease:
            assert (lease.adapter, lease.step) == (adapter, step)


def test_a_resumed_run_may_start_at_any_step() -> None:
    assert table(17).current().policy.step == 17


@pytest.mark.parametrize("model", ["agent@5", "agemt", "agent@", "AGENT@3", "agent@03", ""])
def test_an_unknown_name_is_refused_and_the_message_helps(model: str) -> None:
    with pytest.raises(NoRouteError, match=r"known: .*agent, agent@3, agent@4"):
        table(3, 4).acquire(model)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(NoRouteError, match="did you mean 'agent'"):
        table(3).acquire("agemt")


def test_an_unserved_step_is_refused_with_those_served() -> None:
    route = table(3, 4)
    for ask in (route.inference_name, route.lease):
        with pytest.raises(NoRouteError, match="step 2 of 'agent' is not served; served: 3, 4"):
            ask(2)


@pytest.mark.parametrize("step", [3, 4])
def test_the_default_only_moves_forward(step: int) -> None:
    route = table(3, 4)
    with pytest.raises(RouteError, match="only moves forward"):
        route.flip(policy(step))
    assert route.current().policy.step == 4


def test_after_a_restart_what_was_published_anew_replaces_what_is_served() -> None:
    route = table(3, 4, 5)
    held = route.lease(3)
    anew = {step: policy(step) for step in (2, 3, 5)}
    route.flip(anew[5], beside=[anew[2], anew[3]])
    assert route.current().policy is anew[5]
    assert dict(route.current().served) == {3: anew[3], 5: anew[5]}
    assert list(route.current().served) == [3, 5]
    with pytest.raises(RouteError, match="only moves forward"):
        route.flip(policy(4), beside=[])
    held.release()
    assert steps_of(route.take_idle(keep=1)) == [3]


async def test_a_step_lost_in_a_restart_makes_room() -> None:
    route = table(1, 2)
    with route.lease(1):
        waiting = asyncio.create_task(route.make_room(2, keep=1, timeout_s=30))
        await asyncio.sleep(0)
        route.flip(policy(2), beside=[])
        assert await waiting == ()


def test_a_policy_under_another_name_is_refused() -> None:
    route = table(3)
    with pytest.raises(RouteError, match="'agent-4'"):
        route.flip(policy(4, "agent-4"))
    assert route.names() == ("agent", "agent@3", BASE)


def test_a_model_may_not_be_named_as_its_base() -> None:
    with pytest.raises(ConfigError, match="another name"):
        RouteTable(BASE, BASE)


def test_a_request_keeps_its_step_through_a_flip() -> None:
    route = table(1)
    lease = route.acquire("agent")
    route.flip(policy(2))
    assert lease.adapter == "agent@1"
    assert route.acquire("agent").adapter == "agent@2"
    assert route.in_flight() == {1: 1, 2: 1}


def test_drain_takes_old_idle_steps_oldest_first_and_leaves_the_newest() -> None:
    route = table(1, 2, 3, 4, 5)
    held = route.lease(2)
    assert steps_of(route.take_idle(keep=2)) == [1, 3]
    assert list(route.current().served) == [2, 4, 5]
    with pytest.raises(NoRouteError):
        route.acquire("agent@3")
    held.release()
    held.release()
    assert steps_of(route.take_idle(keep=2)) == [2]
    assert steps_of(route.take_idle(keep=1)) == [4]
    assert route.take_idle(keep=1) == ()
    assert route.inference_name() == "agent@5"


def test_the_default_is_never_taken() -> None:
    with pytest.raises(RouteError, match="at least 1"):
        table(1).take_idle(keep=0)
    assert table().take_idle(keep=1) == ()


def test_releasing_twice_lets_go_of_one_request_only() -> None:
    route = table(1)
    first, second = route.acquire("agent"), route.acquire("agent")
    first.release()
    first.release()
    assert route.in_flight() == {1: 1}
    second.release()
    assert route.in_flight() == {}


async def test_room_is_made_at_once_and_no_more_than_needed() -> None:
    assert await table().make_room(2, keep=1, timeout_s=0) == ()
    route = table(1, 2, 3)
    assert await route.make_room(4, keep=1, timeout_s=0) == ()
    assert steps_of(await route.make_room(3, keep=1, timeout_s=0)) == [1]
    assert list(route.current().served) == [2, 3]


async def test_room_is_made_of_a_newer_step_where_the_oldest_is_busy() -> None:
    route = table(1, 2, 3)
    route.acquire("agent@1")
    assert steps_of(await route.make_room(3, keep=1, timeout_s=0)) == [2]


async def test_a_publication_waits_for_a_slot_and_is_woken_from_another_thread() -> None:
    route = table(1, 2)
    request = route.acquire("agent@1")
    waiting = asyncio.create_task(route.make_room(2, keep=1, timeout_s=30))
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.to_thread(request.release)
    assert steps_of(await waiting) == [1]


def test_several_loops_wait_on_one_table() -> None:
    route = table(1, 2)
    leases = [route.lease(1), route.acquire("agent@1")]
    waiting = threading.Barrier(3)
    taken: list[list[int]] = []

    async def publish() -> None:
        room = asyncio.create_task(route.make_room(2, keep=1, timeout_s=30))
        await asyncio.sleep(0)
        waiting.wait()
        taken.append(steps_of(await room))

    threads = [threading.Thread(target=lambda: asyncio.run(publish())) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait()
    for lease in leases:
        lease.release()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [[], [1]]


async def test_a_slot_that_stays_busy_is_a_retryable_timeout() -> None:
    route = table(1, 2)
    with route.acquire("agent@1"), route.lease(1):
        with pytest.raises(PublishTimeoutError, match=r"requests per step: \{1: 1\}, leased: \[1\]") as caught:
            await route.make_room(2, keep=1, timeout_s=0.01)
        assert caught.value.retryable
    assert list(route.current().served) == [1, 2]
    assert steps_of(await route.make_room(2, keep=1, timeout_s=0)) == [1]


async def test_a_cancelled_wait_takes_nothing() -> None:
    route = table(1, 2)
    request = route.acquire("agent@1")
    waiting = asyncio.create_task(route.make_room(2, keep=1, timeout_s=30))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    request.release()
    assert list(route.current().served) == [1, 2]


@pytest.mark.parametrize("keep", [0, 2, 3])
async def test_room_that_can_never_be_made_is_refused_at_once(keep: int) -> None:
    with pytest.raises(RouteError, match="slots"):
        await table(1, 2).make_room(2, keep=keep, timeout_s=30)


def test_no_request_gets_a_step_that_was_taken() -> None:
    """Threads acquire by every name while another flips and takes; a taken step must be in nobody's hands."""
    route, taken, wrong = table(0), set[int](), list[str]()
    done = threading.Event()

    def ask(number: int) -> None:
        names = ("agent", "agent@{}", BASE)
        while not done.is_set():
            newest = route.current().policy.step
            try:
                lease = route.acquire(names[number % 3].format(max(0, newest - number % 4)))
            except NoRouteError:
                continue
            if lease.step in taken:  # added only after the table gave it away, so a hit is no race of this test
                wrong.append(lease.adapter)
            lease.release()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    try:
        for step in range(1, 300):
            route.flip(policy(step))
            gone = route.take_idle(keep=3)
            busy = route.in_flight()
            wrong += [f"{each.name} taken while in use" for each in gone if each.step in busy]
            taken.update(each.step for each in gone)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert route.in_flight() == {}
    assert len(route.take_idle(keep=1)) + len(taken) == 299


class Traffic(RuleBasedStateMachine):
    """Any order of flips, requests, leases, releases and drains, against a model of sets and counts."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.route = RouteTable("agent", BASE)
        self.newest = -1
        self.served: set[int] = set()
        self.held: list[Lease] = []

    @rule(gap=st.integers(1, 3))
    def flip(self, gap: int) -> None:
        self.newest += gap
        self.served.add(self.newest)
        assert self.route.flip(policy(self.newest)).policy.step == self.newest

    @rule(back=st.integers(0, 3))
    def flip_back(self, back: int) -> None:
        if self.newest - back >= 0:
            with pytest.raises(RouteError):
                self.route.flip(policy(self.newest - back))

    @rule(lost=st.sets(st.integers(0, 12)))
    def restart(self, lost: set[int]) -> None:
        if self.served:
            busy = {lease.step for lease in self.held}
            self.served -= {step for step in lost if step not in busy and step != self.newest}
            older = [policy(step) for step in sorted(self.served - {self.newest})]
            self.route.flip(policy(self.newest), beside=older)

    @rule(target=leases)
    def request_default(self) -> Lease | None:
        if not self.served:
            with pytest.raises(NoRouteError):
                self.route.acquire("agent")
            return None
        return self._got(self.route.acquire("agent"), self.newest)

    @rule(target=leases, step=st.integers(0, 12), exact=st.booleans())
    def request_step(self, step: int, exact: bool) -> Lease | None:
        if step not in self.served:
            with pytest.raises(NoRouteError):
                self.route.lease(step) if exact else self.route.acquire(f"agent@{step}")
            return None
        return self._got(self.route.lease(step) if exact else self.route.acquire(f"agent@{step}"), step)

    @rule(target=leases)
    def request_base(self) -> Lease:
        return self._got(self.route.acquire(BASE), None)

    def _got(self, lease: Lease, step: int | None) -> Lease:
        assert lease.step == step
        self.held.append(lease)
        return lease

    @rule(lease=consumes(leases), times=st.integers(1, 3))
    def release(self, lease: Lease | None, times: int) -> None:
        if lease is not None:
            self.held.remove(lease)
            for _ in range(times):
                lease.release()

    @rule(keep=st.integers(1, 4))
    def take(self, keep: int) -> None:
        busy = {lease.step for lease in self.held}
        expected = [step for step in sorted(self.served)[:-keep] if step not in busy]
        assert steps_of(self.route.take_idle(keep)) == expected
        self.served -= set(expected)

    @rule(live=st.integers(2, 5), keep=st.integers(1, 4))
    def room(self, live: int, keep: int) -> None:
        if keep >= live:
            return
        busy = {lease.step for lease in self.held}
        idle = [step for step in sorted(self.served)[:-keep] if step not in busy]
        surplus = max(0, len(self.served) - live + 1)
        if surplus > len(idle):
            with pytest.raises(PublishTimeoutError):
                asyncio.run(self.route.make_room(live, keep, timeout_s=0))
        else:
            assert steps_of(asyncio.run(self.route.make_room(live, keep, timeout_s=0))) == idle[:surplus]
            self.served -= set(idle[:surplus])

    @invariant()
    def figures_are_those_of_the_model(self) -> None:
        requests = [lease.step for lease in self.held if lease.request]
        assert self.route.in_flight() == {step: requests.count(step) for step in requests}
        if self.served:
            assert set(self.route.current().served) == self.served
            assert self.route.current().policy.step == self.newest == max(self.served)
        assert {lease.step for lease in self.held} - {None} <= self.served


Traffic.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTraffic = Traffic.TestCase
