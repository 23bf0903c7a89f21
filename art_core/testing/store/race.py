"""What a store promises where several commit at once, and where one that commits, deletes or drops is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from art_core.capability import Capability
from art_core.checkpoint import OPTIMIZER, Checkpoint
from art_core.part import StorePart
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.condition import LONGEST_S
from art_core.testing.promise import need, promised
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Maker, Objects, StoreCase, added, fetched, is_whole, leaves_young

COMMITTERS = 8
KILLS = 6
DELETED = 8


class StoreRaces(StoreCase):
    """Tests of several committers, and of one that is killed at committing, deleting or dropping."""

    async def test_one_of_several_committers_wins(
        self, store: CheckpointStore, part: StorePart, make: Maker, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """CREATE_IF_ABSENT: of several concurrent commits of one step exactly one wins; the others conflict."""
        need(part.capabilities, Capability.CREATE_IF_ABSENT)
        for step in range(3):
            staged = [shelf.stage(step, AdapterShape(100 * step + n)) for n in range(COMMITTERS)]
            outcomes = await _race(make, run, staged)
            won = [each for each in outcomes if isinstance(each, StoreEntry)]
            others = {type(each).__name__ for each in outcomes if not isinstance(each, StoreEntry)}
            promised(len(won) == 1, f"exactly one of {COMMITTERS} committers wins", f"{len(won)}, others: {others}")
            promised(others == {"CommitConflictError"}, "the others are refused as a conflict", others)
            promised(await is_whole(store, run, won[0], tmp_path / str(step)), "the winner's checkpoint is whole")
            promised((await store.list(run))[-1] == won[0], "the winner's checkpoint is the one listed")

    async def test_several_committers_of_the_same_all_get_it(
        self, store: CheckpointStore, part: StorePart, make: Maker, run: RunKey, shelf: Shelf
    ) -> None:
        """CREATE_IF_ABSENT: concurrent commits of the same content all return what stands."""
        need(part.capabilities, Capability.CREATE_IF_ABSENT)
        staged = [shelf.stage(1, AdapterShape(1)) for _ in range(COMMITTERS)]
        outcomes = await _race(make, run, staged)
        same = all(isinstance(each, StoreEntry) and each == outcomes[0] for each in outcomes)
        promised(same, "commits of the same content all return what stands", outcomes)
        promised(len(await store.list(run)) == 1, "it is listed once")

    async def test_committers_one_after_another_get_the_first(self, make: Maker, run: RunKey, shelf: Shelf) -> None:
        """Under the run's lock, one committer at a time, the first wins, whatever the store declares."""
        outcomes: list[StoreEntry | BaseException] = []
        for seed in range(3):
            committing = make().commit(run, shelf.stage(1, AdapterShape(seed)))
            outcomes += await asyncio.gather(committing, return_exceptions=True)
        kinds = [type(each).__name__ for each in outcomes]
        promised(kinds == ["StoreEntry", *["CommitConflictError"] * 2], "the first committer wins", kinds)

    async def test_calls_under_way_at_once_keep_apart(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """Different calls may be under way at once on one store: each does what it would do alone."""
        entries = await asyncio.gather(*(store.commit(run, shelf.stage(each, AdapterShape(each))) for each in range(6)))
        promised([each.step for each in entries] == [*range(6)], "commits at once return each its own", entries)
        calls: list[Awaitable[object]] = [store.delete(run, [0, 1, 2], [5]), store.drop_optimizer(run, [3])]
        calls += [fetched(store, run, entries[step], tmp_path / str(step)) for step in (4, 5)]
        listing = asyncio.gather(*(_listing(store, run) for _ in range(3)))
        await asyncio.gather(*calls)
        seen = set.intersection(*await listing)
        promised({3, 4, 5} <= seen, "a list beside other calls has every whole checkpoint", seen)
        promised([each.step for each in await store.list(run)] == [3, 4, 5], "afterwards it is as if one by one")

    async def test_a_killed_committer_leaves_a_whole_checkpoint_or_none(
        self, store: CheckpointStore, make: Maker, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """A crash at any instant leaves a checkpoint listed whole or not listed; the same commit then succeeds."""
        before = set(objects)
        start = time.monotonic()
        await store.commit(run, shelf.stage(0, AdapterShape(0, rank=64)))
        commit_s = time.monotonic() - start
        for attempt in range(1, KILLS):
            shape = AdapterShape(attempt, rank=64)
            work = partial(_commit, run=run, checkpoint=shelf.stage(attempt, shape))
            await _killed(make, work, 1.5 * commit_s * attempt / KILLS)
            steps = await _whole(make(), run, tmp_path / f"{attempt}", "a killed commit is listed whole or not at all")
            promised({*range(attempt)} <= steps, "a killed commit costs no other checkpoint", steps)
            await make().commit(run, shelf.stage(attempt, shape))
        await store.delete(run, range(KILLS), [])
        await leaves_young(store, run, objects)
        await store.sweep(run, 0.0)
        promised(not added(objects, before), "sweep removes what killed commits left", added(objects, before))

    async def test_a_killed_delete_leaves_whole_checkpoints_or_none(
        self, store: CheckpointStore, make: Maker, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """A crash at any instant of a delete leaves each step whole or gone; the same delete then succeeds."""
        before = set(objects)
        deleted, delete_s = range(1, 1 + DELETED), 0.0
        await store.commit(run, shelf.stage(0, AdapterShape(0)))
        for attempt in range(3):
            for step in deleted:
                await store.commit(run, shelf.stage(step, AdapterShape(step)))
            if attempt:
                await _killed(make, partial(_delete, run=run, steps=deleted), delete_s * attempt / 3)
                what = "what a killed delete leaves is listed whole or not at all"
                steps = await _whole(make(), run, tmp_path / f"{attempt}", what)
                promised(0 in steps, "a killed delete costs no other checkpoint", steps)
            start = time.monotonic()
            await make().delete(run, deleted, [])
            delete_s = time.monotonic() - start
            promised([each.step for each in await store.list(run)] == [0], "the same delete then succeeds")
        await store.delete(run, [0], [])
        await store.sweep(run, 0.0)
        promised(not added(objects, before), "sweep removes what killed deletes left", added(objects, before))

    async def test_a_killed_drop_leaves_whole_checkpoints(
        self, store: CheckpointStore, make: Maker, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """A crash at any instant of `drop_optimizer` costs no checkpoint; the same drop then succeeds."""
        drop_s = 0.0
        for attempt, steps in enumerate((range(KILLS), range(KILLS, 2 * KILLS))):
            for step in steps:
                await store.commit(run, shelf.stage(step, AdapterShape(step)))
            if attempt:
                await _killed(make, partial(_drop, run=run, steps=steps), drop_s / 2)
                whole = await _whole(make(), run, tmp_path, "what a killed drop leaves is whole")
                promised({*steps} <= whole, "a killed drop costs no checkpoint", whole)
            start = time.monotonic()
            await make().drop_optimizer(run, steps)
            drop_s = time.monotonic() - start
            left = [each.step for each in await store.list(run) if OPTIMIZER not in each.dropped]
            promised(not left, "the same drop then succeeds", left)
        await store.delete(run, range(2 * KILLS), [])


async def _whole(store: CheckpointStore, run: RunKey, directory: Path, what: str) -> set[int]:
    """The steps that are listed, each of which must be whole."""
    listed = await store.list(run)
    whole = [await is_whole(store, run, each, directory / f"{each.step}") for each in listed]
    promised(all(whole), what)
    return {each.step for each in listed}


async def _listing(store: CheckpointStore, run: RunKey) -> set[int]:
    seen = [{each.step for each in await store.list(run)} for _ in range(4)]
    return set.intersection(*seen)


async def _race(make: Maker, run: RunKey, staged: list[Checkpoint]) -> list[StoreEntry | BaseException]:
    """Commit all at once, each by a store, a thread and an event loop of its own, checked as at a start."""

    async def commit(each: Checkpoint) -> StoreEntry:
        store = make()
        await store.check()
        return await store.commit(run, each)

    calls = (asyncio.to_thread(lambda each: asyncio.run(commit(each)), each) for each in staged)
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def _killed(make: Maker, work: Callable[[CheckpointStore], Awaitable[object]], delay_s: float) -> None:
    """Have another process work with a store, and kill it with -9 a moment after it has begun.

    It is forked from a server without threads: what a store's library runs in this process can't be forked. That server
    may be older than the environment that the store is to see, so the process is told ours.
    """
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["art_core.testing", make.create.__module__])
    worker = context.Process(target=_work, args=(there, make, work, dict(os.environ)))
    worker.start()
    there.close()
    try:
        promised(await asyncio.to_thread(here.poll, LONGEST_S), "a store can be made and checked in another process")
        await asyncio.to_thread(worker.join, delay_s)
        promised(worker.is_alive(), "a call in another process does not fail", f"exit status {worker.exitcode}")
    finally:
        worker.kill()
        await asyncio.to_thread(worker.join)


def _work(
    parent: Connection,
    make: Maker,
    work: Callable[[CheckpointStore], Awaitable[object]],
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)

    async def run() -> None:
        store = make()
        await store.check()
        parent.send(True)
        await work(store)
        await asyncio.Event().wait()

    asyncio.run(run())


async def _commit(store: CheckpointStore, run: RunKey, checkpoint: Checkpoint) -> None:
    await store.commit(run, checkpoint)


async def _delete(store: CheckpointStore, run: RunKey, steps: Collection[int]) -> None:
    await store.delete(run, steps, [])


async def _drop(store: CheckpointStore, run: RunKey, steps: Collection[int]) -> None:
    await store.drop_optimizer(run, steps)
