"""What a store promises of `fetch`, whatever has happened to what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER, Manifest, verify
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, StoreError
from art_core.protocols.store import CheckpointStore, StoreEntry
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Maker, Objects, StoreCase, added, counterparts, fetched


class StoreCopies(StoreCase):
    """Tests of `fetch`, and of what `list` says of damaged checkpoints."""

    async def test_fetch_writes_into_an_empty_directory_only(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """`fetch` makes the directory if it is absent, and refuses one that is not empty."""
        entry = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        await fetched(store, run, entry, tmp_path / "made" / "anew")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").write_text("keep")
        with refused(StoreError, "fetch refuses a directory that is not empty"):
            await store.fetch(run, 1, tmp_path / "full")
        promised([*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "mine"], "a refused fetch writes nothing")

    async def test_fetch_of_what_is_not_there_is_refused(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """`fetch` of a step that was never there, or was deleted, is a CheckpointNotFoundError."""
        with refused(CheckpointNotFoundError, "fetch of a step that was never there"):
            await store.fetch(run, 1, tmp_path / "never")
        await store.commit(run, shelf.stage(1, AdapterShape(1)))
        await store.delete(run, [1], [])
        with refused(CheckpointNotFoundError, "fetch of a deleted step"):
            await store.fetch(run, 1, tmp_path / "deleted")

    @pytest.mark.parametrize("damage", ["changed", "cut", "longer", "empty", "missing"])
    async def test_damage_is_never_given_out(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path, damage: str
    ) -> None:
        """Whatever object of a step is damaged, `fetch` refuses it by name; one of another size is not listed."""
        first = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        before = set(objects)
        entry = await store.commit(run, shelf.stage(2, AdapterShape(2)))
        for number, key in enumerate(added(objects, before)):
            whole = objects[key]
            _damage(objects, key, damage)
            listed = [each.step for each in await store.list(run)]
            promised(1 in listed, "a damaged neighbour hides no whole checkpoint", listed)
            right = await _never_given_out(store, run, entry, key, tmp_path / str(number))
            told = f"what is not whole is not listed ({damage} {key})"
            promised(damage == "changed" or right or 2 not in listed, told)
            objects[key] = whole
        promised(list(await store.list(run)) == [first, entry], "once it is mended it is listed again")

    async def test_files_of_two_steps_swapped_are_never_given_out(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """A file or a manifest of another step, even of the same size, is refused by name."""
        before = set(objects)
        first = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        mine = added(objects, before)
        between = set(objects)
        await store.commit(run, shelf.stage(2, AdapterShape(2)))
        pairs = counterparts(mine, others := added(objects, between))
        promised(pairs, "what is committed stands in the place that `objects` shows", [*mine, *others])
        for number, (one, other) in enumerate(pairs):
            whole = objects[one]
            if whole != objects[other]:
                objects[one] = objects[other]
                await _never_given_out(store, run, first, one, tmp_path / str(number))
                objects[one] = whole

    async def test_a_manifest_that_names_other_places_is_refused(
        self, store: CheckpointStore, make: Maker, run: RunKey, shelf: Shelf, objects: Objects, tmp_path: Path
    ) -> None:
        """A manifest whose file names lead elsewhere, or are a pickle's, is refused; nothing is written for them."""
        before = set(objects)
        entry = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        whole = {key: objects[key] for key in added(objects, before) if b'"manifest_sha256"' in objects[key]}
        promised(whole, "what is listed stands on a manifest in the place", added(objects, before))
        for number, name in enumerate(["../a.json", str(tmp_path / "b.json"), "c/d.json", "e\0.json", ".f", "g.bin"]):
            for key in whole:
                objects[key] = _naming(entry.manifest, name)
            promised(not await make().list(run), f"a manifest that names {name!r} is not listed")
            with refused(CheckpointCorruptError, f"fetch refuses a manifest that names {name!r}"):
                await make().fetch(run, 1, tmp_path / "outside" / str(number))
        left = [path for path in (tmp_path / "outside").rglob("*") if path.is_file()]
        promised(not left and not (tmp_path / "b.json").exists(), "nothing is written for a hostile name", left)
        for key, text in whole.items():
            objects[key] = text
        promised(list(await make().list(run)) == [entry], "once it is mended it is listed again")

    async def test_a_step_without_optimizer_state_can_be_verified(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, tmp_path: Path
    ) -> None:
        """`drop_optimizer` drops that file alone; what is left is listed, fetched and verified as before."""
        for step in (1, 2, 3):
            await store.commit(run, shelf.stage(step, AdapterShape(step)))
        dropped = await store.drop_optimizer(run, [1, 2, 77])
        promised(sorted(dropped) == [1, 2], "drop_optimizer returns the steps that lost it", dropped)
        promised(not await store.drop_optimizer(run, [1, 2]), "dropping again drops nothing")
        entries = await store.list(run)
        expected = [{OPTIMIZER}, {OPTIMIZER}, set[str]()]
        promised([each.dropped for each in entries] == expected, "list says what was dropped", entries)
        for entry in entries:
            directory = tmp_path / str(entry.step)
            await fetched(store, run, entry, directory)
            promised((directory / OPTIMIZER).exists() is not bool(entry.dropped), "only that file is dropped")
        again = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        promised(again == entries[0], "committing the same content again brings nothing back", again)
        promised(list(await store.delete(run, [1], [])) == [1], "a step that has lost it can be deleted")


def _naming(manifest: Manifest, name: str) -> bytes:
    """A manifest that calls the adapter so; it says nothing of its own digest, so it is believed to be whole."""
    fields = manifest.model_dump(mode="json")
    fields["files"] = {name if each == ADAPTER else each: record for each, record in fields["files"].items()}
    return json.dumps(fields).encode()


def _damage(objects: Objects, key: str, damage: str) -> None:
    match damage:
        case "changed":
            data = bytearray(objects[key])
            data[len(data) // 2] ^= 1
            objects[key] = bytes(data)
        case "cut":
            objects[key] = objects[key][:-1]
        case "longer":
            objects[key] = objects[key] + b" "
        case "empty":
            objects[key] = b""
        case "missing":
            del objects[key]


async def _never_given_out(store: CheckpointStore, run: RunKey, entry: StoreEntry, key: str, directory: Path) -> bool:
    """`fetch` raises, naming the file; or what it gives is right to the last byte, because that object is not read.

    Returns:
        Whether it was given, and right.
    """
    name = key.rpartition("/")[2]
    try:
        await store.fetch(run, entry.step, directory)
    except CheckpointCorruptError as error:
        if name in {MANIFEST, *entry.manifest.files}:
            promised(name in str(error), "the error names the file that is wrong", error)
    except CheckpointNotFoundError:
        promised(name not in entry.manifest.files, "a step whose file is gone is damaged, not absent", key)
    else:
        try:
            given: object = verify(directory)
        except CheckpointCorruptError as error:
            given = error
        promised(given == entry.manifest, f"fetch verifies every byte ({name})", given)
        return True
    return False
