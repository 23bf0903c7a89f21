"""What a store promises of runs: which there are, and that names keep them apart."""

from __future__ import annotations

import unicodedata
import uuid

from art_core.errors import CommitConflictError
from art_core.protocols.store import CheckpointStore
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Maker, StoreCase


class StoreNames(StoreCase):
    """Tests of `runs`, and of runs side by side."""

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
        other = RunKey(f"other {uuid.uuid4().hex[:12]} {run.project}", run.run)
        await store.commit(run, shelf.stage(1, AdapterShape(1)))
        promised(not await store.list(other), "a run of another project is another run")
        promised(other not in await store.runs(), "runs names what is there, and no other", other)
        await store.commit(other, shelf.stage(2, AdapterShape(2)))
        promised({run, other} <= {*await store.runs()}, "runs names also what has come since it was last asked", other)
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


def _nearly_the_same(name: str) -> list[RunKey]:
    runs = [name, name.lower(), unicodedata.normalize("NFD", name), name + " ", name + "0", name[:-1]]
    runs += [name.replace(" ", "_"), name.replace("_", " "), name.replace(" ", "%20"), name.replace(" ", "+")]
    return [RunKey("p-q", each) for each in runs] + [RunKey("p", f"q-{name}"), RunKey("P-q", name)]
