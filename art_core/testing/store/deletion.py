"""What a store promises of `delete`, and of what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from art_core.checkpoint import ADAPTER, OPTIMIZER
from art_core.errors import CheckpointCorruptError, CommitConflictError, StoreError
from art_core.protocols.store import CheckpointStore
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf, drop_optimizer
from art_core.testing.store.bench import Objects, StoreCase, added, fetched, is_whole, leaves_young


class StoreDeletions(StoreCase):
    """Tests of `delete`."""

    async def test_delete_removes_those_steps_and_no_other(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """`delete` returns the steps that it deleted; the others stay whole; a deleted step can be made anew."""
        for step in (0, 1, 2, 3, 10, 21):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        deleted = await store.delete(run, [1, 2, 77], [3])
        promised(sorted(deleted) == [1, 2], "delete returns the steps that were deleted", deleted)
        listed = await store.list(run)
        promised([each.step for each in listed] == [0, 3, 10, 21], "only those steps are gone", listed)
        for each in listed:
            promised(await is_whole(store, run, each, tmp_path / str(each.step)), "the other steps stay whole")
        promised(not await store.delete(run, [1], []), "deleting again deletes nothing")
        await store.commit(run, shelf.stage(1, AdapterShape(9)))

    async def test_a_protected_step_is_never_deleted(self, store: CheckpointStore, run: RunKey, shelf: Shelf) -> None:
        """A step to delete that is protected is a StoreError, and nothing is deleted."""
        for step in (0, 1, 2):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        with refused(StoreError, "delete refuses a protected step"):
            await store.delete(run, [0, 1], [1, 2])
        steps = [each.step for each in await store.list(run)]
        promised(steps == [0, 1, 2], "a refused delete deletes nothing", steps)

    async def test_sweep_removes_what_is_left_over_and_nothing_else(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """`sweep` touches nothing of a checkpoint that stands, nor what is younger than it is told to look at."""
        await store.commit(run, shelf.stage(1, AdapterShape(1)))
        await store.commit(run, drop_optimizer(shelf.stage(2, AdapterShape(2))))
        state_bytes = (await store.commit(run, shelf.stage(3, AdapterShape(3)))).manifest.files[OPTIMIZER].size_bytes
        before_drop = dict(objects)
        await store.drop_optimizer(run, [3])
        entries = list(await store.list(run))
        await store.sweep(run, 0.0)  # a store may leave to it what was dropped
        promised(list(await store.list(run)) == entries, "after a sweep the same is listed")
        standing = dict(objects)
        freed = _bytes(before_drop) - _bytes(standing)
        promised(freed > state_bytes // 2, "what was dropped and swept takes no more room", f"{freed} bytes less")
        await _refused_commits(store, run, shelf)
        before = dict(objects)
        await leaves_young(store, run, objects)
        swept = await store.sweep(run, 0.0)
        seen = sorted(set(objects) ^ set(standing))
        promised(dict(objects) == standing, "sweep removes what refused commits left, and nothing else", seen)
        promised((swept > 0) == (before != standing), "sweep returns how much it removed", swept)
        for each in entries:
            await fetched(store, run, each, tmp_path / str(each.step))

    async def test_nothing_of_a_deleted_run_is_left(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects
    ) -> None:
        """After all steps are deleted and what is left is swept, the place is as it was before."""
        before = set(objects)
        for step in (1, 2):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        await store.drop_optimizer(run, [1])
        await store.delete(run, [1, 2], [])
        await leaves_young(store, run, objects)
        await store.sweep(run, 0.0)
        promised(not added(objects, before), "nothing of a deleted run is left", added(objects, before))
        promised(run not in await store.runs(), "a run without anything is not named", run)


def _bytes(objects: Mapping[str, bytes]) -> int:
    return sum(map(len, objects.values()))


async def _refused_commits(store: CheckpointStore, run: RunKey, shelf: Shelf) -> None:
    """Commits that are refused when they may have written much already: at a taken step, and of a changed file."""
    with refused(CommitConflictError, "commit refuses other content at a step that is taken"):
        await store.commit(run, shelf.stage(1, AdapterShape(4)))
    changed = shelf.stage(5, AdapterShape(5))
    data = bytearray((changed.directory / ADAPTER).read_bytes())
    data[-1] ^= 1
    (changed.directory / ADAPTER).write_bytes(data)
    with refused(CheckpointCorruptError, "commit refuses local files that differ from the manifest (changed)"):
        await store.commit(run, changed)
