"""What a store promises while the place that it writes to fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from art_core.errors import CheckpointNotFoundError, StoreError
from art_core.protocols.store import CheckpointStore
from art_core.run_key import RunKey
from art_core.testing.adapter import AdapterShape
from art_core.testing.promise import promised, refused
from art_core.testing.shelf import Shelf
from art_core.testing.store.bench import Outage, StoreCase


class StoreOutages(StoreCase):
    """Tests of a place that fails, where the author gives `outage`."""

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls) -> Outage | None:
        """Makes the place fail for a block; None: there is no way to, and nothing is tested of it."""
        return None

    async def test_a_place_that_fails_is_not_taken_for_an_empty_one(
        self, store: CheckpointStore, run: RunKey, shelf: Shelf, outage: Outage | None, tmp_path: Path
    ) -> None:
        """While the place fails every call raises StoreError; nothing is said to be absent, and nothing is lost."""
        if outage is None:
            pytest.skip("no fixture `outage` is given")
        entry = await store.commit(run, shelf.stage(1, AdapterShape(1)))
        staged = shelf.stage(2, AdapterShape(2))
        calls: Mapping[str, Callable[[], Awaitable[object]]] = {
            "runs": store.runs,
            "list": lambda: store.list(run),
            "fetch": lambda: store.fetch(run, 1, tmp_path / "fetched"),
            "commit": lambda: store.commit(run, staged),
            "delete": lambda: store.delete(run, [1], []),
        }
        with outage():
            for name, call in calls.items():
                with refused(StoreError, f"{name} of a place that fails is an error"):
                    try:
                        await call()
                    except CheckpointNotFoundError as error:
                        promised(False, f"{name} of a place that fails does not say that a step is absent", error)
        promised(list(await store.list(run)) == [entry], "afterwards the same is listed")
        await store.commit(run, staged)
