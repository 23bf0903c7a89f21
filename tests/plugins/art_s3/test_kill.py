"""kill -9 before and after every request that changes a bucket: nothing torn is ever listed, and it can be done again.

The victims are forked from a server process that has imported everything and started no thread, because what obstore
runs does not survive a fork.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions

from art_core.checkpoint import Checkpoint, verify
from art_core.object_store import ObjectStore
from art_core.run_key import RunKey
from art_core.testing.condition import LONGEST_S, until
from tests.plugins.art_s3.place import Place
from tests.staged import stage_step

KEY = RunKey("p", "r")
CHANGES = ("put", "create", "upload", "delete")


class Doomed(S3Bucket):
    """Kills its process before or after the n-th request that changes something."""

    def __init__(self, options: S3StoreOptions, point: int) -> None:
        super().__init__(options)
        self.left = point

    def struck(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def _around(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: Doomed, *args: Any) -> Any:
        self.struck()
        result = await getattr(S3Bucket, name)(self, *args)
        self.struck()
        return result

    return call


for change in CHANGES:
    setattr(Doomed, change, _around(change))


def victim(options: S3StoreOptions, point: int, work: str, checkpoint: Checkpoint | None) -> None:
    store = ObjectStore(Doomed(options, point), "s3", options.single_writer)
    asyncio.run(do(store, work, checkpoint))


async def do(store: ObjectStore, work: str, checkpoint: Checkpoint | None) -> None:
    match work:
        case "commit":
            assert checkpoint is not None
            await store.commit(KEY, checkpoint)
        case "delete":
            await store.delete(KEY, [0], [1])
        case "drop":
            await store.drop_optimizer(KEY, [0])
        case "sweep":
            await store.sweep(KEY, 0.0)


async def kill_everywhere(place: Place, tmp_path: Path, work: str, **changes: Any) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.plugins.art_s3.test_kill"])
    for point in itertools.count():
        options = place.options.model_copy(update={"prefix": f"{work}/{point}", **changes})
        store = ObjectStore(S3Bucket(options), "s3", options.single_writer)
        for step in (0, 1):
            await store.commit(KEY, stage_step(tmp_path / str(point) / KEY.run, step))
        place.objects[f"{work}/{point}/p/models/r/checkpoints/0005/{'0' * 16}/lost.json"] = b"{}"
        checkpoint = stage_step(tmp_path / str(point) / KEY.run, 2) if work == "commit" else None
        process = context.Process(target=victim, args=(options, point, work, checkpoint))
        process.start()
        await asyncio.to_thread(process.join, LONGEST_S)
        if process.is_alive():
            process.kill()
            pytest.fail(f"a victim of {work} still runs after {LONGEST_S:g} s")
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, "the victim failed by itself"
            return point
        await check(store, tmp_path / f"fetched {point}", work, checkpoint)
    raise AssertionError


async def check(store: ObjectStore, scratch: Path, work: str, checkpoint: Checkpoint | None) -> None:
    """What is listed is whole; the same call made again succeeds; after a sweep nothing else is there."""
    for again in range(2):
        entries = await store.list(KEY)
        steps = [entry.step for entry in entries]
        assert {1} <= {*steps} <= {0, 1, 2}
        for entry in entries:
            fetched = await store.fetch(KEY, entry.step, scratch / f"{again} {entry.step}")
            assert verify(fetched.directory, entry.manifest) == entry.manifest
        await do(store, work, checkpoint)
    assert [entry.step for entry in await store.list(KEY)] == {"commit": [0, 1, 2], "delete": [1]}.get(work, [0, 1])
    await store.sweep(KEY, 0.0)
    await store.delete(KEY, [0, 1, 2], [])

    async def gone() -> bool:
        await store.sweep(KEY, 0.0)
        return KEY not in await store.runs()

    await until(gone, "all is swept, be it that the server got round late to what the victim had sent")


@pytest.mark.parametrize(
    "work", ["commit", *(pytest.param(work, marks=pytest.mark.heavy) for work in ("delete", "drop", "sweep"))]
)
async def test_killed_before_and_after_every_request(place: Place, tmp_path: Path, work: str) -> None:
    kills = await kill_everywhere(place, tmp_path, work)
    print(f"{kills} kills of {work}")
    assert kills >= {"commit": 10, "delete": 4, "drop": 4, "sweep": 6}[work]
