"""What a store promises of `check`, `runs`, `commit` and `list`."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER
from art_core.errors import ArtError, CommitConflictError
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf, drop_optimizer, measured_anew
from art_core.testing.store.bench import Maker, Objects, StoreCase, fetched


class StoreCommits(StoreCase):
    """Tests of `check`, `runs`, `commit` and `list`."""

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

    async def test_another_store_lists_the_same(
        self, store: CheckpointStore, make: Maker, run: RunKey, shelf: Shelf
    ) -> None:
        """What is committed does not hang on the object that committed it; names may be any text."""
        entry = await store.commit(run, shelf.stage(0, AdapterShape(1)))
        again = make()
        promised(list(await again.list(run)) == [entry], "another store lists the same")
        promised(run in await again.runs(), "runs names every run, whatever its name", run)

    async def test_runs_of_one_name_in_two_projects_are_two(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf
    ) -> None:
        """A run is its project and its name together."""
        other = RunKey("other " + run.project, run.run)
        await store.commit(run, shelf.stage(1, AdapterShape(1)))
        promised(not await store.list(other), "a run of another project is another run")
        await store.commit(other, shelf.stage(2, AdapterShape(2)))
        promised([each.step for each in await store.list(run)] == [1], "committing to one run changes no other")

    async def test_names_that_are_nearly_the_same_are_different_runs(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf
    ) -> None:
        """Names are any text: case, the form of a letter, spaces, signs, and where a name ends tell runs apart."""
        keys, told = _nearly_the_same(f"É a_b {run.run[-12:]}"), "a run is no other one whose name is nearly the same"
        entries = []
        for seed, key in enumerate(keys):
            try:
                entries.append(await store.commit(key, shelf.beside(key.run).stage(1, AdapterShape(seed))))
            except CommitConflictError as error:
                promised(False, told, error)
        for key, entry in zip(keys, entries, strict=True):
            promised(list(await store.list(key)) == [entry], told, key)
        found = [each for each in await store.runs() if each in keys]
        promised(found == sorted(keys), "runs names every run once, sorted", found)

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


def _nearly_the_same(name: str) -> list[RunKey]:
    runs = [name, name.lower(), unicodedata.normalize("NFD", name), name + " ", name + "0", name[:-1]]
    runs += [name.replace(" ", "_"), name.replace("_", " "), name.replace(" ", "%20"), name.replace(" ", "+")]
    return [RunKey("p-q", each) for each in runs] + [RunKey("p", f"q-{name}"), RunKey("P-q", name)]


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
