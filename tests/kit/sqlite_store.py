"""A store as somebody else would write it: every file a row of one SQLite database, a commit one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import quote, unquote

from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import (
    DROPPED,
    MANIFEST,
    OPTIMIZER,
    Checkpoint,
    Manifest,
    check_layout,
    manifest_bytes,
    parse_manifest,
    verify,
)
from art_core.config import PartOptions
from art_core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CommitConflictError,
    StoreError,
    StoreUnavailableError,
)
from art_core.part import StorePart
from art_core.protocols.store import StoreEntry, content_key
from art_core.run_key import RunKey

R = TypeVar("R")

SCHEMA = """create table if not exists files (
    project, run, step, name, data, since default (cast(strftime('%s') as integer)),
    primary key (project, run, step, name)
)"""
INSERT = "insert into files (project, run, step, name, data) values"
MINE = "from files where project = ? and run = ?"


class SqliteStoreOptions(PartOptions):
    """Which database."""

    part: ClassVar[str] = "sqlite"
    path: str = "/nowhere"


class SqliteStore:
    """See `art_core.protocols.store`."""

    def __init__(self, options: SqliteStoreOptions) -> None:
        self._path = options.path

    async def check(self) -> None:
        await self._do(lambda db: db.execute("select 1"))

    async def runs(self) -> Sequence[RunKey]:
        rows = await self._do(lambda db: db.execute("select distinct project, run from files").fetchall())
        return sorted(RunKey(*row) for row in rows)

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        return await self._do(lambda db: self._commit(db, run, checkpoint))

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        def entries(db: sqlite3.Connection) -> Iterator[StoreEntry]:
            for (step,) in db.execute(f"select distinct step {MINE} order by step", key(run)).fetchall():
                try:
                    yield self._entry(db, run, step)
                except (CheckpointCorruptError, CheckpointNotFoundError):
                    continue

        return await self._do(lambda db: [*entries(db)])

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        def fetch(db: sqlite3.Connection) -> Checkpoint:
            entry = self._entry(db, run, step)
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise StoreError(f"{directory} is not empty")
            for name in entry.manifest.files.keys() - entry.dropped:
                (directory / name).write_bytes(self._read(db, run, step, name))
            for name in entry.dropped:
                (directory / (name + DROPPED)).touch()
            (directory / MANIFEST).write_bytes(manifest_bytes(entry.manifest))
            return Checkpoint(directory, verify(directory, entry.manifest))

        return await self._do(fetch)

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        if clash := set(steps) & set(protected):
            raise StoreError(f"steps {sorted(clash)} are protected")
        return await self._do(
            lambda db: [step for step in steps if db.execute(f"delete {MINE} and step = ?", (*key(run), step)).rowcount]
        )

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        def drop(db: sqlite3.Connection, step: int) -> bool:
            marker = (
                "insert or ignore into files (project, run, step, name, data) select project, run, step, name || ?, x''"
            )
            return (
                db.execute(f"{marker} {MINE} and step = ? and name = ?", (DROPPED, *key(run), step, OPTIMIZER)).rowcount
                > 0
            )

        return await self._do(lambda db: [step for step in steps if drop(db, step)])

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """A transaction that was cut short leaves nothing; what was dropped is marked, and goes here."""
        marked = f"select step {MINE} and name = ?"
        old = "since <= cast(strftime('%s') as integer) - ?"
        where = (*key(run), OPTIMIZER, older_than_s, *key(run), OPTIMIZER + DROPPED)
        return await self._do(
            lambda db: db.execute(f"delete {MINE} and name = ? and {old} and step in ({marked})", where).rowcount
        )

    def _commit(self, db: sqlite3.Connection, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        manifest = verify(checkpoint.directory, checkpoint.manifest)
        here = check_layout(checkpoint.directory, manifest)
        try:
            standing = self._entry(db, run, manifest.step).manifest
        except CheckpointNotFoundError:
            files = {name: (checkpoint.directory / name).read_bytes() for name in here}
            files |= {name + DROPPED: b"" for name in manifest.files.keys() - set(here)}
            files[MANIFEST] = manifest_bytes(manifest)
            rows = [(*key(run), manifest.step, name, data) for name, data in files.items()]
            db.executemany(f"{INSERT} (?, ?, ?, ?, ?)", rows)
            standing = manifest
        if content_key(standing) != content_key(manifest):
            raise CommitConflictError(f"another checkpoint stands at step {manifest.step}", step=manifest.step)
        return self._entry(db, run, manifest.step)

    def _entry(self, db: sqlite3.Connection, run: RunKey, step: int) -> StoreEntry:
        rows = db.execute(f"select name, length(data) {MINE} and step = ?", (*key(run), step)).fetchall()
        if not rows:
            raise CheckpointNotFoundError(f"there is no step {step} of run {run}", step=step)
        sizes: dict[str, int] = dict(rows)
        if MANIFEST not in sizes:
            raise CheckpointCorruptError(f"{MANIFEST} of step {step} is missing")
        manifest = parse_manifest(self._read(db, run, step, MANIFEST), MANIFEST)
        if (manifest.run, manifest.step) != (run.run, step):
            raise CheckpointCorruptError(f"{MANIFEST} is of run {manifest.run!r} step {manifest.step}")
        return StoreEntry(manifest, _dropped(manifest, sizes))

    def _read(self, db: sqlite3.Connection, run: RunKey, step: int, name: str) -> bytes:
        where = (*key(run), step, name)
        row = db.execute(f"select data {MINE} and step = ? and name = ?", where).fetchone()
        return bytes(row[0]) if row else b""

    async def _do(self, work: Callable[[sqlite3.Connection], R]) -> R:
        def locked() -> R:
            try:
                with transaction(self._path) as db:
                    return work(db)
            except sqlite3.Error as error:
                raise StoreUnavailableError(f"the database {self._path} fails: {error}") from error

        return await asyncio.to_thread(locked)


def _dropped(manifest: Manifest, sizes: dict[str, int]) -> frozenset[str]:
    dropped = frozenset({OPTIMIZER} & manifest.files.keys()) if OPTIMIZER + DROPPED in sizes else frozenset[str]()
    for name in manifest.files.keys() - dropped:
        if sizes.get(name) != manifest.files[name].size_bytes:
            raise CheckpointCorruptError(f"{name} has {sizes.get(name)} bytes, not {manifest.files[name].size_bytes}")
    return dropped


def key(run: RunKey) -> tuple[str, str]:
    return run.project, run.run


@contextmanager
def transaction(path: str) -> Iterator[sqlite3.Connection]:
    """The database, alone: all that the block does is seen at its end, or nothing is."""
    with closing(sqlite3.connect(path, timeout=60.0, isolation_level=None)) as db:
        db.execute("begin immediate")
        db.execute(SCHEMA)
        yield db
        db.execute("commit")


class SqliteObjects(MutableMapping[str, bytes]):
    """Every row, past the store."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getitem__(self, key: str) -> bytes:
        with transaction(self._path) as db:
            where = "project = ? and run = ? and step = ? and name = ?"
            row = db.execute(f"select data from files where {where}", _row(key)).fetchone()
        if row is None:
            raise KeyError(key)
        return bytes(row[0])

    def __setitem__(self, key: str, value: bytes) -> None:
        with transaction(self._path) as db:
            db.execute(INSERT.replace("insert", "insert or replace") + " (?, ?, ?, ?, ?)", (*_row(key), value))

    def __delitem__(self, key: str) -> None:
        with transaction(self._path) as db:
            db.execute("delete from files where project = ? and run = ? and step = ? and name = ?", _row(key))

    def __iter__(self) -> Iterator[str]:
        with transaction(self._path) as db:
            rows = db.execute("select project, run, step, name from files").fetchall()
        return iter("/".join(quote(str(each), safe="") for each in row) for row in rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _row(key: str) -> tuple[str, str, int, str]:
    project, run, step, name = map(unquote, key.split("/"))
    return project, run, int(step), name


def sqlite_part() -> StorePart:
    """The part, as a plugin would register it."""
    capabilities = Capabilities({Capability.CREATE_IF_ABSENT: FULL})
    return StorePart(name="sqlite", options=SqliteStoreOptions, capabilities=capabilities, create=SqliteStore)
