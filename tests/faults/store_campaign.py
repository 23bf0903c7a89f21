"""Random kills inside commits, copies in the background, deletions and collections, over every kind of store.

    python -m tests.faults.store_campaign [--kills 1000] [--seed N] [--stores file fsspec s3]

The stores are the file store, the object store through fsspec (on a local directory, whose driver can't create only
what is not there, so under the lease of one writer; the minute for which a dead one's mark counts is cut short here),
and the S3 store (on moto's server). Each keeps one run, on which one call after the other is killed in a fork by
SIGKILL: before or after any call that changes a file (`file`), or any request that changes an object (the others).
After every kill, in another fork: every step that is listed is whole, byte by byte; nothing was lost that the call was
not to delete, so the newest committed step is there; nothing is there that it was not to add; the same call made again
ends as it would have. At the end every store is swept. The seed is printed; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from art_core import lease
from art_core.checkpoint import Checkpoint, StoredCheckpoint, verify
from art_core.file_store import FileStore
from art_core.fsspec_bucket import FsspecBucket
from art_core.local_store import LocalStore
from art_core.object_store import ObjectStore
from art_core.protocols.store import CheckpointStore
from art_core.replication import Replicator
from art_core.run_key import RunKey
from tests.faults.kill import DISK, Call, end_of, hooked, in_fork, killed_at
from tests.staged import stage_step

KEY = RunKey("p", "r")
DEAD_S = 0.1
WORKS = ("commit", "replicate", "delete", "drop", "sweep")
KEPT = 4
"""So many steps stay when one is deleted, so that a check reads few."""
SHARE = {"file": 6, "fsspec": 3, "s3": 1}
"""How often each store's turn comes: one on a server takes longer."""
MOTO = (
    "from moto.server import ThreadedMotoServer as S; import sys; s = S('127.0.0.1', 0, verbose=False); s.start(); "
    "print('http://%s:%s' % s.get_host_and_port(), flush=True); sys.stdin.read()"
)


def requests(bucket: type) -> Sequence[Call]:
    """What of a bucket changes an object."""
    return [(bucket, name) for name in ("put", "create", "upload", "delete")]


@dataclass
class Place:
    """One store and what it should hold. `make` is called in forks alone: what obstore runs survives none."""

    make: Callable[[], CheckpointStore]
    calls: Sequence[Call]
    steps: set[int] = field(default_factory=set)
    points: dict[str, int] = field(default_factory=dict)
    """How many points the calls of a kind were seen to have."""


@dataclass(frozen=True)
class Task:
    """One call, and what it is to change."""

    work: str
    steps: Sequence[int]
    added: Collection[int]
    deleted: Collection[int]


async def do(store: CheckpointStore, task: Task, local: Path) -> None:
    """Make the call."""
    stored = {each.step: each for each in await LocalStore().list(local)}
    match task.work:
        case "commit":
            (step,) = task.steps
            await store.commit(KEY, Checkpoint(stored[step].directory, stored[step].manifest))
        case "replicate":
            await replicate(store, [stored[step] for step in task.steps])
        case "delete":
            await store.delete(KEY, task.steps, [])
        case "drop":
            await store.drop_optimizer(KEY, task.steps)
        case "sweep":
            await store.sweep(KEY, 0.0)


async def replicate(store: CheckpointStore, steps: Sequence[StoredCheckpoint]) -> None:
    """Copy steps as a run does, in the background."""
    replicator = Replicator(store, KEY)
    await replicator.copy(steps)
    await replicator.wait(0, 60.0)
    await replicator.close(0.0)


async def check(place: Place, task: Task, local: Path) -> None:
    """What is listed is whole and as it may be; made again, the call ends as it would have."""
    store = place.make()
    after = place.steps.union(task.added) - set(task.deleted)
    for again in range(2):
        entries = await store.list(KEY)
        listed = {entry.step for entry in entries}
        assert place.steps & after <= listed <= place.steps | after, (task, listed, place.steps)
        for entry in entries:
            with tempfile.TemporaryDirectory() as directory:
                fetched = await store.fetch(KEY, entry.step, Path(directory))
                assert verify(fetched.directory, entry.manifest) == entry.manifest
        if not again:
            await do(store, task, local)
    assert listed == after, (task, listed, after)


def forked(work: Callable[[], object]) -> None:
    """Do the work in a fork, to its end."""
    assert end_of(in_fork(work)) == 0, "it failed; its traceback stands above"


class StoreCampaign:
    """Kills over several stores, in a directory."""

    def __init__(self, root: Path, places: dict[str, Place], seed: int) -> None:
        self._local = root / "local" / KEY.run
        self._scratch = root / "points"
        self._places = places
        self._random = random.Random(seed)
        self._next = itertools.count()
        self.kills: Counter[str] = Counter()

    def run(self, kills: int) -> None:
        """Kill so many, each checked."""
        for place in self._places.values():
            for _ in range(3):
                task = self._task(place, "commit")
                forked(lambda place=place, task=task: asyncio.run(do(place.make(), task, self._local)))
                place.steps |= set(task.added)
        names = [name for name in self._places for _ in range(SHARE[name])]
        for turn in itertools.count():
            name, work = names[turn % len(names)], self._random.choice(WORKS)
            self._kill(name, self._places[name], work)
            if self.kills.total() == kills:
                break
        for place in self._places.values():
            forked(lambda place=place: asyncio.run(place.make().sweep(KEY, 0.0)))

    def _kill(self, name: str, place: Place, work: str) -> None:
        task = self._task(place, work)
        if work not in place.points:
            self._learn(place, task)
        else:
            point = self._random.randrange(place.points[work])
            if killed_at(point, lambda: asyncio.run(do(place.make(), task, self._local)), place.calls):
                self.kills[f"{name} {work}"] += 1
        forked(lambda: asyncio.run(check(place, task, self._local)))
        place.steps = place.steps.union(task.added) - set(task.deleted)

    def _learn(self, place: Place, task: Task) -> None:
        """Make the call to its end and count its points."""

        def counted() -> None:
            count = itertools.count()
            with hooked(lambda *_: next(count) and None, place.calls):
                asyncio.run(do(place.make(), task, self._local))
            self._scratch.write_text(str(next(count)))

        forked(counted)
        place.points[task.work] = int(self._scratch.read_text())

    def _task(self, place: Place, work: str) -> Task:
        count = {"commit": 1, "replicate": 2}.get(work, 0)
        if count:
            new = [next(self._next) for _ in range(count)]
            for step in new:
                staged = stage_step(self._local, step)
                asyncio.run(LocalStore().commit(self._local, staged))
            return Task(work, new, new, ())
        old = sorted(place.steps)[:-1]
        if work == "delete":
            gone = old[: max(1, len(place.steps) - KEPT)]
            return Task(work, gone, (), gone) if len(place.steps) > KEPT else Task("sweep", (), (), ())
        return Task(work, old[-1:] if work == "drop" else (), (), ())


@contextmanager
def moto() -> Iterator[str]:
    """Moto's server with a bucket, in a process of its own; its address."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", MOTO], text=True, **pipes) as server:  # type: ignore[call-overload]
        address = server.stdout.readline().strip()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        session = import_module("botocore.session").get_session()
        client = session.create_client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="kills")
        yield address
        server.stdin.close()


def places(root: Path, address: str, names: Collection[str]) -> dict[str, Place]:
    """The stores of these names."""
    bucket = import_module("art_s3.bucket").S3Bucket
    options = import_module("art_s3.options").S3StoreOptions(bucket="kills", endpoint_url=address)
    every = {
        "file": Place(lambda: FileStore(root / "file"), DISK),
        "fsspec": Place(
            lambda: ObjectStore(FsspecBucket(f"local://{root}/fsspec", {"auto_mkdir": True}), "fsspec", True),
            requests(FsspecBucket),
        ),
        "s3": Place(lambda: ObjectStore(bucket(options), "s3", False), requests(bucket)),
    }
    return {name: every[name] for name in names}


def main() -> None:
    """Parse, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--stores", nargs="+", choices=SHARE, default=list(SHARE))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    lease.LIFE_S = DEAD_S
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as root, moto() as address:
        campaign = StoreCampaign(Path(root), places(Path(root), address, arguments.stores), arguments.seed)
        campaign.run(arguments.kills)
    figures = {
        "seed": arguments.seed,
        "kills": campaign.kills.total(),
        "torn_steps_listed": 0,  # the first one would have ended the campaign
        "wall_s": round(time.monotonic() - start, 1),
        "kills_by_kind": dict(sorted(campaign.kills.items())),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
