"""What a checkpoint store promises: `art_core.protocols.store`, a test each."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER, Checkpoint, StoredCheckpoint, verify
from art_core.config import PartOptions
from art_core.errors import (
    ArtError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CommitConflictError,
    StoreError,
)
from art_core.part import StorePart
from art_core.protocols.store import CheckpointStore
from art_core.testing.adapter import AdapterShape
from art_core.testing.family import interrupted
from art_core.testing.promise import need, promised, refused
from art_core.testing.shelf import Shelf

COMMITTERS = 8
KILLS = 6


@pytest.mark.asyncio(loop_scope="session")
class StoreCase:
    """Fixture that the author of a store gives: `part`, and `options` where the defaults don't do."""

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> StorePart:
        """The part under test, as the plugin registers it."""
        raise NotImplementedError("override the fixture `part`: return load_part('store', '<your part>')")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, part: StorePart) -> PartOptions:
        """The part's options; the defaults unless overridden."""
        return part.options()

    @pytest.fixture
    def store(self, part: StorePart, options: PartOptions) -> CheckpointStore:
        """A store, made anew for every test."""
        return part.create(options)

    @pytest.fixture
    def shelf(self, tmp_path: Path) -> Shelf:
        """A run whose name is not ASCII, and stages checkpoints for it."""
        (tmp_path / "base").mkdir()
        config = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        run = tmp_path / "läufer 日本 🏃 e\u0301"
        run.mkdir()
        return Shelf(run, tmp_path / "base")


class StoreCommits(StoreCase):
    """Tests of `commit` and `list`."""

    async def test_a_committed_checkpoint_is_whole_and_listed(self, store: CheckpointStore, shelf: Shelf) -> None:
        """After `commit` the checkpoint is listed, whole, at a path that never moves, with its own manifest."""
        promised(not await store.list(shelf.run), "a run without checkpoints lists none")
        checkpoint = shelf.stage(3, AdapterShape(1))
        stored = await store.commit(shelf.run, checkpoint)
        promised(stored.manifest == checkpoint.manifest, "the stored manifest is the staged one", stored.manifest)
        verify(stored.directory, stored.manifest)
        promised(list(await store.list(shelf.run)) == [stored], "list gives what commit returned, at its path")
        await store.commit(shelf.run, shelf.stage(4, AdapterShape(2)))
        verify(stored.directory, stored.manifest)

    async def test_another_store_lists_the_same(self, store: CheckpointStore, part: StorePart, shelf: Shelf) -> None:
        """What is committed does not hang on the object that committed it; the run's name may be any text."""
        stored = await store.commit(shelf.run, shelf.stage(0, AdapterShape(1)))
        again = await part.create(part.options()).list(shelf.run)
        promised([each.manifest for each in again] == [stored.manifest], "another store lists the same", again)
        promised(stored.run == shelf.run.name, "the run's name survives as it is", stored.run)

    async def test_the_list_is_by_rising_step(self, store: CheckpointStore, shelf: Shelf) -> None:
        """`list` gives the checkpoints by rising step, whatever order they were committed in."""
        steps = [2, 10, 0, 9, 12345, 1]
        for step in steps:
            await store.commit(shelf.run, shelf.stage(step, AdapterShape(step)))
        listed = [stored.step for stored in await store.list(shelf.run)]
        promised(listed == sorted(steps), "list is by rising step", listed)

    async def test_committing_the_same_again_returns_the_stored_one(self, store: CheckpointStore, shelf: Shelf) -> None:
        """Committing the same content again returns the stored one and changes nothing."""
        first = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        second = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        promised(second == first, "the same content again is the stored one", second)
        promised(list(await store.list(shelf.run)) == [first], "a repeated commit adds nothing")
        verify(first.directory, first.manifest)

    async def test_other_content_at_a_step_is_refused(self, store: CheckpointStore, shelf: Shelf) -> None:
        """Another checkpoint at that step is a CommitConflictError; the one that stands stays whole."""
        first = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        with refused(CommitConflictError, "commit refuses other content at a step that is taken"):
            await store.commit(shelf.run, shelf.stage(1, AdapterShape(2)))
        promised(list(await store.list(shelf.run)) == [first], "after a conflict the first checkpoint stands")
        verify(first.directory, first.manifest)

    @pytest.mark.parametrize("damage", ["cut", "missing", "extra"])
    async def test_a_staged_checkpoint_that_is_not_whole_never_shows(
        self, store: CheckpointStore, shelf: Shelf, damage: str
    ) -> None:
        """A store shows whole checkpoints only: one staged otherwise is refused, and not listed."""
        checkpoint = shelf.stage(1, AdapterShape(1))
        _damage(checkpoint.directory, damage)
        with refused(ArtError, f"commit refuses staged files that differ from the manifest ({damage})"):
            await store.commit(shelf.run, checkpoint)
        promised(not await store.list(shelf.run), "a refused commit is not listed")
        await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))

    @pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "half a manifest"])
    async def test_what_is_not_whole_is_not_listed(self, store: CheckpointStore, shelf: Shelf, damage: str) -> None:
        """`list` leaves out what is not whole; what it gives verifies, byte by byte."""
        stored = [await store.commit(shelf.run, shelf.stage(step, AdapterShape(step))) for step in (1, 2, 3)]
        _damage(stored[1].directory, damage)
        listed = await store.list(shelf.run)
        steps = [each.step for each in listed]
        promised({1, 3} <= {*steps}, "a damaged neighbour hides no whole checkpoint", steps)
        for each in listed:
            promised(_whole(each), f"what is listed is whole ({damage})", f"step {each.step}")

    async def test_a_place_that_can_not_be_written_is_refused(
        self, store: CheckpointStore, shelf: Shelf, tmp_path: Path
    ) -> None:
        """What the system refuses is a StoreError that names the path."""
        (tmp_path / "file").write_text("not a directory")
        try:
            with refused(StoreError, "commit into what is no directory"):
                await store.commit(tmp_path / "file" / "run", shelf.stage(1, AdapterShape(1)))
        finally:
            promised(not await store.list(shelf.run), "a refused commit is not listed in another run")


class StoreCopies(StoreCase):
    """Tests of `fetch`."""

    async def test_fetch_copies_every_file(self, store: CheckpointStore, shelf: Shelf, tmp_path: Path) -> None:
        """`fetch` copies a checkpoint into an empty directory, every byte verified."""
        stored = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        fetched = await store.fetch(stored, _empty(tmp_path))
        promised(fetched.manifest == stored.manifest, "the fetched manifest is the stored one")
        promised(fetched.directory == tmp_path / "fetched", "it is fetched into the directory that was given")
        verify(fetched.directory, stored.manifest)
        promised(_whole(stored), "fetch leaves the stored checkpoint as it was")

    @pytest.mark.parametrize("name", [ADAPTER, OPTIMIZER])
    async def test_fetch_never_gives_a_changed_byte(
        self, store: CheckpointStore, shelf: Shelf, tmp_path: Path, name: str
    ) -> None:
        """A file that differs from the manifest in one byte is a CheckpointCorruptError that names it."""
        stored = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        data = bytearray((stored.directory / name).read_bytes())
        data[-1] ^= 1
        (stored.directory / name).write_bytes(data)
        try:
            fetched = await store.fetch(stored, _empty(tmp_path))
        except CheckpointCorruptError as error:
            promised(name in str(error), "the error names the file that differs", error)
            return
        promised(_matches(fetched), f"fetch verifies every byte of {name}", "a changed byte was given out")

    async def test_fetch_of_what_is_gone_is_refused(self, store: CheckpointStore, shelf: Shelf, tmp_path: Path) -> None:
        """`fetch` of a deleted checkpoint is a CheckpointNotFoundError."""
        stored = await store.commit(shelf.run, shelf.stage(1, AdapterShape(1)))
        await store.delete(shelf.run, [1], [])
        with refused(CheckpointNotFoundError, "fetch of a deleted checkpoint"):
            await store.fetch(stored, _empty(tmp_path))


class StoreDeletions(StoreCase):
    """Tests of `delete`."""

    async def test_delete_removes_those_steps_and_no_other(self, store: CheckpointStore, shelf: Shelf) -> None:
        """`delete` returns the steps that it deleted; the others stay whole; a deleted step can be made anew."""
        for step in (0, 1, 2, 3):
            await store.commit(shelf.run, shelf.stage(step, AdapterShape(step)))
        deleted = await store.delete(shelf.run, [1, 2, 77], [3])
        promised(sorted(deleted) == [1, 2], "delete returns the steps that were deleted", deleted)
        listed = await store.list(shelf.run)
        promised([each.step for each in listed] == [0, 3], "only those steps are gone", listed)
        promised(all(_whole(each) for each in listed), "the other steps stay whole")
        promised(not await store.delete(shelf.run, [1], []), "deleting again deletes nothing")
        await store.commit(shelf.run, shelf.stage(1, AdapterShape(9)))

    async def test_a_protected_step_is_never_deleted(self, store: CheckpointStore, shelf: Shelf) -> None:
        """A step to delete that is protected is a StoreError, and nothing is deleted."""
        for step in (0, 1, 2):
            await store.commit(shelf.run, shelf.stage(step, AdapterShape(step)))
        with refused(StoreError, "delete refuses a protected step"):
            await store.delete(shelf.run, [0, 1], [1, 2])
        steps = [each.step for each in await store.list(shelf.run)]
        promised(steps == [0, 1, 2], "a refused delete deletes nothing", steps)


class StoreRaces(StoreCase):
    """Tests of several committers, and of one that is killed."""

    async def test_one_of_several_committers_wins(
        self, store: CheckpointStore, part: StorePart, options: PartOptions, shelf: Shelf
    ) -> None:
        """CREATE_IF_ABSENT: of several concurrent commits of one step exactly one wins; the others conflict."""
        need(part.capabilities, Capability.CREATE_IF_ABSENT)
        for step in range(3):
            staged = [shelf.stage(step, AdapterShape(100 * step + n)) for n in range(COMMITTERS)]
            outcomes = await _race(lambda: part.create(options), shelf.run, staged)
            won = [each for each in outcomes if isinstance(each, StoredCheckpoint)]
            others = {type(each).__name__ for each in outcomes if not isinstance(each, StoredCheckpoint)}
            promised(len(won) == 1, f"exactly one of {COMMITTERS} committers wins", f"{len(won)}, others: {others}")
            promised(others == {"CommitConflictError"}, "the others are refused as a conflict", others)
            promised(_whole(won[0]), "the winner's checkpoint is whole")
            promised((await store.list(shelf.run))[-1] == won[0], "the winner's checkpoint is the one listed")

    async def test_several_committers_of_the_same_all_get_it(
        self, part: StorePart, options: PartOptions, shelf: Shelf
    ) -> None:
        """CREATE_IF_ABSENT: concurrent commits of the same content all return the stored one."""
        need(part.capabilities, Capability.CREATE_IF_ABSENT)
        staged = [shelf.stage(1, AdapterShape(1)) for _ in range(COMMITTERS)]
        outcomes = await _race(lambda: part.create(options), shelf.run, staged)
        same = all(isinstance(each, StoredCheckpoint) and each == outcomes[0] for each in outcomes)
        promised(same, "commits of the same content all return the stored one", outcomes)

    async def test_a_killed_committer_leaves_a_whole_checkpoint_or_none(
        self, part: StorePart, options: PartOptions, shelf: Shelf
    ) -> None:
        """A crash at any instant leaves a checkpoint listed whole or not listed; the same commit then succeeds."""
        for attempt in range(KILLS):
            shape = AdapterShape(attempt, rank=64)
            checkpoint = shelf.stage(attempt, shape)
            await interrupted(_committing(part.create(options), shelf.run, checkpoint), attempt / 1000)
            listed = await part.create(options).list(shelf.run)
            promised(all(_whole(each) for each in listed), "a killed commit is listed whole or not at all")
            steps = {each.step for each in listed}
            promised({*range(attempt)} <= steps, "a killed commit costs no other checkpoint", steps)
            await part.create(options).commit(shelf.run, shelf.stage(attempt, shape))


def _committing(store: CheckpointStore, run: Path, checkpoint: Checkpoint) -> Callable[[], Awaitable[object]]:
    return lambda: store.commit(run, checkpoint)


async def _race(
    make: Callable[[], CheckpointStore], run: Path, staged: list[Checkpoint]
) -> list[StoredCheckpoint | BaseException]:
    """Commit all at once, each by a store, a thread and an event loop of its own."""
    calls = (asyncio.to_thread(lambda each: asyncio.run(make().commit(run, each)), each) for each in staged)
    return list(await asyncio.gather(*calls, return_exceptions=True))


def _damage(directory: Path, damage: str) -> None:
    match damage:
        case "cut":
            os.truncate(directory / ADAPTER, 100)
        case "missing":
            (directory / OPTIMIZER).unlink()
        case "extra":
            (directory / "extra.json").write_text("{}")
        case "no manifest":
            (directory / MANIFEST).unlink()
        case "half a manifest":
            os.truncate(directory / MANIFEST, 100)


def _empty(tmp_path: Path) -> Path:
    directory = tmp_path / "fetched"
    directory.mkdir()
    return directory


def _whole(stored: StoredCheckpoint) -> bool:
    return _matches(Checkpoint(stored.directory, stored.manifest))


def _matches(checkpoint: Checkpoint) -> bool:
    try:
        verify(checkpoint.directory, checkpoint.manifest)
    except CheckpointCorruptError:
        return False
    return True
