"""What a store promises of `check`, `commit` and `list`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER
from art_core.errors import ArtError, CommitConflictError
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf, drop_optimizer, measured_anew
from art_core.testing.store.bench import Objects, StoreCase, fetched


class StoreCommits(StoreCase):
    """Tests of `check`, `commit` and `list`."""

    async def test_a_committed_checkpoint_is_listed_and_can_be_fetched(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """After `commit` the checkpoint is listed with its own manifest, and `fetch` gives every byte of it."""
        promised(not await store.list(run), "a run without checkpoints lists none")
        checkpoint = shelf.stage(3, AdapterShape(1))
        entry = await store.commit(run, checkpoint)
        promised(entry == StoreEntry(checkpoint.manifest), "commit returns what stands there", entry)
        promised(list(await store.list(run)) == [entry], "list gives what commit returned")
        await fetched(store, run, entry, tmp_path / "fetched")

    async def test_commit_leaves_the_local_files_as_they_are(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf
    ) -> None:
        """`commit` copies: an engine may read the local files at any time."""
        checkpoint = shelf.stage(1, AdapterShape(1))
        before = {path: path.read_bytes() for path in checkpoint.directory.iterdir()}
        await store.commit(run, checkpoint)
        after = {path: path.read_bytes() for path in checkpoint.directory.iterdir()}
        promised(before == after, "commit leaves the local files as they are", [*after])

    async def test_the_list_is_by_rising_step(self, store: CheckpointStore, run: RunKey, shelf: Shelf) -> None:
        """`list` gives the checkpoints by rising step, whatever order they were committed in."""
        steps = [2, 10, 0, 9, 12345, 1]
        for step in steps:
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        listed = [entry.step for entry in await store.list(run)]
        promised(listed == sorted(steps), "list is by rising step", listed)

    async def test_committing_the_same_again_returns_what_stands(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf
    ) -> None:
        """Committing the same content again returns what stands, and changes nothing."""
        first = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        second = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        promised(second == first, "the same content again is what stands", second)
        promised(list(await store.list(run)) == [first], "a repeated commit adds nothing")

    async def test_a_retry_that_measured_something_else_returns_what_stands(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf
    ) -> None:
        """Metrics and versions are no content (`content_key`): a commit that differs in them alone is the same."""
        first = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        second = await store.commit(run, measured_anew(shelf.stage(1, AdapterShape(1))))
        promised(second == first, "the same content with other metrics is what stands", second)

    async def test_other_content_at_a_step_is_refused(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """Another checkpoint at that step is a CommitConflictError; the one that stands stays whole."""
        first = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        with refused(CommitConflictError, "commit refuses other content at a step that is taken"):
            await store.commit(run, shelf.stage(1, AdapterShape(2)))
        promised(list(await store.list(run)) == [first], "after a conflict the first checkpoint stands")
        await fetched(store, run, first, tmp_path / "fetched")

    @pytest.mark.parametrize("damage", ["cut", "changed", "missing", "extra", "a link"])
    async def test_local_files_that_differ_from_the_manifest_never_show(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, damage: str
    ) -> None:
        """A store shows whole checkpoints only: local files that differ from the manifest are refused."""
        checkpoint = shelf.stage(1, AdapterShape(1))
        _damage(checkpoint.directory, damage)
        with refused(ArtError, f"commit refuses local files that differ from the manifest ({damage})"):
            await store.commit(run, checkpoint)
        promised(not await store.list(run), "a refused commit is not listed")
        await store.commit(run, shelf.stage(1, AdapterShape(1)))

    async def test_what_does_not_belong_there_changes_nothing(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """A foreign file beside a checkpoint's, whatever its name, is never taken for a part of one."""
        before = set(objects)
        entries = [await store.commit(run, shelf.stage(step, AdapterShape(step))) for step in (1, 2)]
        for key in sorted(set(objects) - before):
            place = key.rpartition("/")[0]
            objects[f"{place}/foreign.bin" if place else "foreign.bin"] = b"x"
        for entry in await store.list(run):
            promised(entry in entries, "what is listed was committed", entry)
            directory = tmp_path / f"fetched {entry.step}"
            await fetched(store, run, entry, directory)
            promised(not (directory / "foreign.bin").exists(), "fetch gives no foreign file")

    async def test_what_was_dropped_before_is_dropped_in_the_store(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """A checkpoint whose optimizer state was dropped is committed without it, and is whole."""
        entry = await store.commit(run, drop_optimizer(shelf.stage(1, AdapterShape(1))))
        promised(entry.dropped == {OPTIMIZER}, "what was dropped here is dropped there", entry.dropped)
        promised(list(await store.list(run)) == [entry], "a checkpoint without optimizer state is whole")
        await fetched(store, run, entry, tmp_path / "fetched")


def _damage(directory: Path, damage: str) -> None:
    path = directory / ADAPTER
    match damage:
        case "cut":
            os.truncate(path, 100)
        case "changed":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        case "missing":
            (directory / OPTIMIZER).unlink()
        case "extra":
            (directory / "extra.json").write_text("{}")
        case "a link":
            outside = directory.parent / "outside"
            path.rename(outside)
            path.symlink_to(outside)
    assert (directory / MANIFEST).exists()
