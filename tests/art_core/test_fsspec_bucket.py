"""The object store through fsspec: what its drivers can do decides, and what they say when they fail is told apart."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from art_core import file_record
from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER, manifest_bytes
from art_core.errors import (
    CapabilityError,
    CheckpointCorruptError,
    CommitConflictError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)
from art_core.file_record import FileRecord
from art_core.fsspec_bucket import MemoryBucket, open_bucket
from art_core.local_store import in_thread
from art_core.object_layout import keys_of, place_of
from art_core.object_store import ObjectStore
from art_core.protocols.store import StoreEntry
from art_core.run_key import RunKey
from art_core.testing.condition import LONGEST_S, TOLD_S, until, within
from tests.staged import stage_step

KEY = RunKey("p", "r")


def store(url: str, *, single_writer: bool = False, **options: Any) -> ObjectStore:
    return ObjectStore(open_bucket(url, options), url, single_writer)


@pytest.fixture
def url() -> str:
    """A place in memory of the test's own."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("single_writer", [False, True])
async def test_one_of_eight_committers_wins(url: str, tmp_path: Path, single_writer: bool) -> None:
    """By the driver's create-if-absent, or under the lease that stands in for it."""
    for step in range(3):
        staged = [stage_step(tmp_path / str(seed) / KEY.run, step, seed) for seed in range(8)]
        stores = [store(url, single_writer=single_writer) for _ in staged]
        calls = [each.commit(KEY, one) for each, one in zip(stores, staged, strict=True)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        won = [each for each in outcomes if isinstance(each, StoreEntry)]
        assert len(won) == 1, outcomes
        assert {type(each) for each in outcomes} == {StoreEntry, CommitConflictError}
        assert (await store(url).list(KEY))[-1] == won[0]


async def test_a_driver_that_can_not_create_only_what_is_not_there_is_found_out(tmp_path: Path) -> None:
    place = f"local://{tmp_path}/far"
    with pytest.raises(CapabilityError, match="can't create an object only if there is none; give single_writer=True"):
        await store(place).check()
    leased = store(place, single_writer=True)
    await leased.check()
    entry = await leased.commit(KEY, stage_step(tmp_path / KEY.run, 1))
    assert list(await leased.list(KEY)) == [entry]


async def test_a_commit_that_is_refused_leaves_no_upload_under_way(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still being written when another file is refused has ended when `commit` raises."""
    under_way, begun, hash_it, go = set[str](), threading.Event(), threading.Event(), threading.Event()
    upload, record, differs = MemoryBucket.upload, file_record.record_beside, file_record.differs
    loop = asyncio.get_running_loop()

    def hashed(path: Path) -> FileRecord:
        if path.name == ADAPTER:
            begun.wait(LONGEST_S)
        if path.name == OPTIMIZER:
            hash_it.wait(LONGEST_S)
        return record(path)

    def waiting(name: str) -> None:
        go.wait(LONGEST_S)
        under_way.discard(name)

    async def slow(bucket: MemoryBucket, key: str, path: Path) -> None:
        if path.name == OPTIMIZER:
            under_way.add(path.name)
            begun.set()
            await in_thread(waiting, path.name)
        await upload(bucket, key, path)

    def refused(*what: Any) -> CheckpointCorruptError:
        loop.call_later(0.2, hash_it.set)
        loop.call_later(0.4, go.set)
        return differs(*what)

    monkeypatch.setattr(MemoryBucket, "upload", slow)
    monkeypatch.setattr(file_record, "differs", refused)
    monkeypatch.setattr(file_record, "record_beside", hashed)
    staged = stage_step(tmp_path / KEY.run, 1)
    data = (staged.directory / ADAPTER).read_bytes()
    (staged.directory / ADAPTER).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await store(url).commit(KEY, staged)
    assert not under_way


async def test_keys_that_no_run_of_ours_has_are_passed_over(url: str, tmp_path: Path) -> None:
    await store(url).commit(KEY, stage_step(tmp_path / KEY.run, 1))
    bucket = open_bucket(url, {})
    for name in ("..%2Fup", "%2E%2E", ".hidden", "back%5Cslash", "%FF", "r%72", "not encoded", "%00"):
        for project, run in ((name, "r"), ("p", name)):
            await bucket.put(f"{project}/models/{run}/checkpoints/0001/manifest.json", b"{}")
    assert await store(url).runs() == [KEY]


@pytest.mark.parametrize("url", ["nothing://x", "memory2://x"])
def test_a_driver_that_there_is_not_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=f"fsspec can't use '{url}'"):
        open_bucket(url, {})


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else can listen there meanwhile
        address = taken.getsockname()[1]
        with pytest.raises(StoreUnavailableError, match=f"can't use ftp://me:…@127.0.0.1:{address}/x: Connection"):
            open_bucket(f"ftp://me:secret@127.0.0.1:{address}/x", {})


def test_no_message_shows_a_password() -> None:
    with pytest.raises(ConfigError, match="can't use 'nothing://me:…@host/a:b@c'"):
        open_bucket("nothing://me:secret@host/a:b@c", {})


class Looks(dict[str, Any]):
    """fsspec's memory, counting how often somebody goes over all of it."""

    count = 0

    def __iter__(self) -> Iterator[str]:
        self.count += 1
        return super().__iter__()

    def items(self) -> Any:
        self.count += 1
        return super().items()


async def test_ten_thousand_steps_are_gone_over_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a step or a directory, as fsspec's own calls would; its older versions list so too."""
    files, key, root = fsspec.filesystem("memory"), RunKey("prü f", "läuft%"), f"/{uuid.uuid4().hex}/in/it"
    monkeypatch.setattr(MemoryFileSystem, "store", Looks())
    one = stage_step(tmp_path / key.run, 0)
    data = {name: (one.directory / name).read_bytes() for name in one.manifest.files}
    for step in range(10_000):
        manifest, place = one.manifest.model_copy(update={"step": step}), f"{place_of(key)}{step:04d}/"
        for name, at in keys_of(place, manifest).items():
            files.pipe_file(f"{root}/{at}", data[name])
        files.pipe_file(f"{root}/{place}{MANIFEST}", manifest_bytes(manifest))
    far = store(f"memory:/{root}/")
    calls: tuple[tuple[Callable[[], Awaitable[Any]], int], ...] = (
        (far.runs, 2),
        (lambda: far.list(key), 1),
        (lambda: far.commit(key, stage_step(tmp_path / key.run, 10_000)), 20),
        (lambda: far.fetch(key, 10_000, tmp_path / "fetched"), 20),
        (lambda: far.delete(key, range(9_999), [10_000]), 1),
        (lambda: far.list(key), 1),
    )
    done = []
    for call, limit in calls:
        before = MemoryFileSystem.store.count
        done.append(await call())
        assert MemoryFileSystem.store.count - before <= limit
    runs, listed, *_, deleted, left = done
    assert runs == [key] and [each.step for each in listed] == list(range(10_000)) == [*deleted, 9_999]
    assert [each.step for each in left] == [9_999, 10_000]


class FailingFileSystem(MemoryFileSystem):
    """fsspec's own memory, told to fail: what a driver's errors become. That drivers raise these is not shown."""

    protocol = ("failing",)
    error: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("failing://", "memory://")))

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._fail()
        super().pipe_file(path, value, mode)

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        self._fail()
        super().put_file(*args, **kwargs)

    def find(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return super().find(*args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._fail()
        super().rm_file(path)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("no"), StoreError),
        (NotImplementedError("no"), StoreError),
        (TimeoutError("late"), StoreUnavailableError),
        (ConnectionResetError("gone"), StoreUnavailableError),
        (RuntimeError("503 slow down"), StoreUnavailableError),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each.__name__,
)
async def test_errors_are_told_apart_and_lose_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    kind: type[StoreError],
) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    far = store(f"failing://{uuid.uuid4().hex}")
    entry = await far.commit(KEY, stage_step(tmp_path / KEY.run, 1))
    monkeypatch.setattr(FailingFileSystem, "error", error)
    for call in (
        lambda: far.commit(KEY, stage_step(tmp_path / KEY.run, 2)),
        lambda: far.list(KEY),
        lambda: far.fetch(KEY, 1, tmp_path / "fetched"),
        lambda: far.delete(KEY, [1], []),
        lambda: far.drop_optimizer(KEY, [1]),
        lambda: far.sweep(KEY, 0.0),
    ):
        with pytest.raises(StoreError, match=str(error)) as caught:
            await call()
        assert type(caught.value) is kind and caught.value.retryable is (kind is StoreUnavailableError)
    monkeypatch.setattr(FailingFileSystem, "error", None)
    assert list(await far.list(KEY)) == [entry]
    await far.commit(KEY, stage_step(tmp_path / KEY.run, 2))
    gc.collect()
    assert "never retrieved" not in caplog.text, "of several uploads that fail the first one is told, once"


async def test_a_driver_that_does_not_say_when_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of ftp: a lease could not tell a mark that was left from one of somebody at work."""

    def find(self: FailingFileSystem, path: str, **_: Any) -> Any:
        found = MemoryFileSystem.find(self, path, detail=True)
        return {name: {"name": name, "size": info["size"], "type": info["type"]} for name, info in found.items()}

    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(FailingFileSystem, "find", find)
    with pytest.raises(StoreError, match=r"does not say when .* was written; use another store"):
        await store(f"failing://{uuid.uuid4().hex}", single_writer=True).check()


async def test_a_driver_with_one_connection_is_called_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met, uploads = threading.Barrier(2), []

    def put_file(self: FailingFileSystem, lpath: str, rpath: str, **_: Any) -> None:
        uploads.append(rpath)
        with suppress(threading.BrokenBarrierError):
            met.wait(timeout=0.3)
        MemoryFileSystem.put_file(self, lpath, rpath)

    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(FailingFileSystem, "put_file", put_file)
    await store(f"failing://{uuid.uuid4().hex}").commit(KEY, stage_step(tmp_path / KEY.run, 1))
    assert len(uploads) == 4 and met.broken, "two uploads were under way at once"


async def test_nobody_waits_for_a_driver_that_does_not_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = threading.Event(), threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: asked.set() or go.wait())
    call = asyncio.create_task(MemoryBucket(url, {}).get("key", 1))
    await until(lambda: asked.is_set() or call.done(), "the driver is asked")
    with within(TOLD_S, "a cancelled call ends"):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    go.set()
