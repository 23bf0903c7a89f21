"""What a store promises of `delete`, and of what it leaves behind."""

from __future__ import annotations

from pathlib import Path

from art_core.errors import StoreError
from art_core.protocols.store import CheckpointStore
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Objects, StoreCase, added, is_whole


class StoreDeletions(StoreCase):
    """Tests of `delete`."""

    async def test_delete_removes_those_steps_and_no_other(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """`delete` returns the steps that it deleted; the others stay whole; a deleted step can be made anew."""
        for step in (0, 1, 2, 3):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        deleted = await store.delete(run, [1, 2, 77], [3])
        promised(sorted(deleted) == [1, 2], "delete returns the steps that were deleted", deleted)
        listed = await store.list(run)
        promised([each.step for each in listed] == [0, 3], "only those steps are gone", listed)
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

    async def test_nothing_of_a_deleted_run_is_left(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects
    ) -> None:
        """After all steps are deleted and what is left is swept, the place is as it was before."""
        before = set(objects)
        for step in (1, 2):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        await store.drop_optimizer(run, [1])
        await store.delete(run, [1, 2], [])
        await store.sweep(run, 0.0)
        promised(not added(objects, before), "nothing of a deleted run is left", added(objects, before))
        promised(run not in await store.runs(), "a run without anything is not named", run)
