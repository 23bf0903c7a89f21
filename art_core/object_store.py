"""A checkpoint store over an object store.

    <prefix>/<project>/models/<run>/checkpoints/0007/
      manifest.json                            the decision: one PUT that succeeds only if there is none yet
      9f3a…/adapter_model.safetensors …        the files, below the first digits of `content_key`

The files go first, the manifest last. What is below another key than the manifest's own is not part of the checkpoint:
a committer that lost, or was killed. Two committers of one content write the same bytes to the same names. Deleting
begins with the manifest, so a step is there whole or not there at any instant. Only keys of this form are looked at,
and a local file's name comes from the manifest, never from a key.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from art_core import disk, file_record
from art_core.bucket import Bucket, StoredObject
from art_core.checkpoint import (
    DROPPABLE,
    DROPPED,
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    OPTIMIZER,
    Checkpoint,
    Manifest,
    check_layout,
    manifest_bytes,
    parse_manifest,
    read_manifest,
)
from art_core.errors import (
    CapabilityError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CommitConflictError,
)
from art_core.lease import lease
from art_core.local_store import in_thread, make_empty, require_unprotected
from art_core.object_layout import by_step, forms_of, is_ours, keys_of, lease_of, place_of
from art_core.protocols.store import StoreEntry, content_key
from art_core.run_key import RunKey, plain_keys

R = TypeVar("R")

_CALLS = 32

_log = logging.getLogger("art.store")


class ObjectStore:
    """Keeps copies of checkpoints in a bucket; see `art_core.protocols.store`.

    Args:
        bucket: Where; keys begin after its own prefix.
        what: How to call it in messages, e.g. its URL.
        single_writer: The bucket can't create-if-absent: decide under a lease instead (`art_core.lease`).
    """

    def __init__(self, bucket: Bucket, what: str, single_writer: bool) -> None:
        self._bucket = bucket
        self._what = what
        self._single_writer = single_writer
        self._manifests: dict[str, tuple[str, Manifest]] = {}

    async def check(self) -> None:
        """Make sure that the bucket can be written, and that it refuses to create what is there."""
        key = f".art-probe/{uuid.uuid4().hex}"
        write = self._bucket.put if self._single_writer else self._bucket.create
        first = await write(key, b"")
        try:
            if self._single_writer:
                await self._bucket.list(key)  # the lease needs to know when a mark was written
            elif not first or await self._bucket.create(key, b""):
                raise CapabilityError(
                    f"{self._what} ignores the condition to write an object only if there is none, so two committers "
                    f"could both win; use another server, or give single_writer=True and train each run on one machine"
                )
        finally:
            await self._bucket.delete([key])

    async def runs(self) -> Sequence[RunKey]:
        """The runs below the prefix, sorted."""
        projects = [each for each in await self._bucket.folders("") if not each.startswith(".")]
        found = await _gather(self._bucket.folders(f"{project}/models/") for project in projects)
        pairs = [(project, run) for project, runs in zip(projects, found, strict=True) for run in runs]
        return plain_keys((unquote(project), unquote(run)) for project, run in pairs if is_ours(project, run))

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        """Copy a checkpoint in, and make it visible and durable."""
        manifest = checkpoint.manifest
        place = place_of(run) + f"{manifest.step:04d}/"
        names = await in_thread(_local_files, checkpoint)
        data = await self._manifest(f"{place}{MANIFEST}")
        if data is not None:
            self._require_same(run, manifest, data)
        there = {each.key for each in await self._bucket.list(place)} if data is not None else set[str]()
        files = keys_of(place, manifest)
        missing = [name for name in manifest.files if not there & forms_of(files[name])]
        await _gather(self._upload(files[name], checkpoint, name) for name in missing if name in names)
        dropped = [files[name] for name in missing if name not in names]
        await _gather(self._bucket.put(key + DROPPED, b"") for key in dropped)
        if data is None and not await self._decide(run, f"{place}{MANIFEST}", manifest_bytes(manifest)):
            data = await self._manifest(f"{place}{MANIFEST}")
            self._require_same(run, manifest, data)
        return await self._entry(run, manifest.step)

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        """The whole checkpoints of a run, by rising step."""
        steps = by_step(place_of(run), await self._bucket.list(place_of(run)))
        shown = [step for step, objects in sorted(steps.items()) if f"{place_of(run)}{step:04d}/{MANIFEST}" in objects]
        read = await _gather(self._read(run, step, steps[step]) for step in shown)
        for each in read:
            if isinstance(each, CheckpointCorruptError):
                _log.warning("a step of run %s in %s is left out: %s", run, self._what, each)
        return [each for each in read if isinstance(each, StoreEntry)]

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified."""
        entry = await self._entry(run, step)
        manifest, place = entry.manifest, place_of(run) + f"{step:04d}/"
        with disk.disk_errors(f"fetch step {step}"):
            await in_thread(make_empty, directory)
            names = [name for name in manifest.files if name not in entry.dropped]
            await _gather(self._download(keys_of(place, manifest)[name], directory / name, manifest) for name in names)
            for name in entry.dropped:
                disk.write(directory / (name + DROPPED), b"")
            disk.write(directory / MANIFEST, manifest_bytes(manifest))
        return Checkpoint(directory, manifest)

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one."""
        require_unprotected(steps, protected)
        found = by_step(place_of(run), await self._bucket.list(place_of(run)) if steps else [])
        manifests = {step: f"{place_of(run)}{step:04d}/{MANIFEST}" for step in sorted(steps)}
        present = [step for step, key in manifests.items() if key in found.get(step, {})]
        await self._bucket.delete([manifests[step] for step in present])
        await self._bucket.delete([key for step in present for key in found[step].keys() - {manifests[step]}])
        return present

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole."""
        found = by_step(place_of(run), await self._bucket.list(place_of(run)) if steps else [])
        read = await _gather(self._read(run, step, found[step]) for step in sorted(set(steps) & found.keys()))
        entries = [each for each in read if isinstance(each, StoreEntry) and OPTIMIZER in each.manifest.files]
        keys = {each.step: keys_of(f"{place_of(run)}{each.step:04d}/", each.manifest)[OPTIMIZER] for each in entries}
        keys = {step: key for step, key in keys.items() if key in found[step]}
        await _gather(self._bucket.put(key + DROPPED, b"") for key in keys.values())
        await self._bucket.delete(list(keys.values()))
        return list(keys)

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """Remove the files of commits and deletes that were cut short, and unfinished uploads."""
        clock = f".art-probe/{uuid.uuid4().hex}"  # the server's own clock
        await self._bucket.put(clock, b"")
        now_s = max(each.modified_s for each in await self._bucket.list(clock))
        await self._bucket.delete([clock])
        steps = by_step(place_of(run), await self._bucket.list(place_of(run)))
        left: list[StoredObject] = []
        for step, objects in steps.items():
            read = await self._read(run, step, objects)
            if isinstance(read, StoreEntry):
                place = f"{place_of(run)}{step:04d}/"
                needed = {f"{place}{MANIFEST}"}.union(*map(forms_of, keys_of(place, read.manifest).values()))
                left += [each for key, each in objects.items() if key not in needed]
            elif f"{place_of(run)}{step:04d}/{MANIFEST}" not in objects:  # a damaged step is for people to look at
                left += objects.values()
        old = [each.key for each in left if each.modified_s <= now_s - older_than_s]
        await self._bucket.delete(old)
        return len(old) + await self._bucket.abort_uploads(place_of(run), older_than_s)

    async def _manifest(self, key: str) -> bytes | None:
        return await self._bucket.get(key, MANIFEST_LIMIT_BYTES)

    def _require_same(self, run: RunKey, manifest: Manifest, data: bytes | None) -> None:
        where = f"{self._what}: {place_of(run)}{manifest.step:04d}/{MANIFEST}"
        if data is not None and content_key(parse_manifest(data, where)) != content_key(manifest):
            raise CommitConflictError(
                f"another checkpoint stands at {where}; delete step {manifest.step} there first, or train from it",
                step=manifest.step,
            )

    async def _decide(self, run: RunKey, key: str, data: bytes) -> bool:
        """Write the manifest if there is none; whether this committer has won."""
        if not self._single_writer:
            return await self._bucket.create(key, data)
        async with lease(self._bucket, lease_of(run)):
            if await self._manifest(key) is not None:
                return False
            await self._bucket.put(key, data)
            return True

    async def _upload(self, key: str, checkpoint: Checkpoint, name: str) -> None:
        path = checkpoint.directory / name
        hashing = asyncio.ensure_future(in_thread(file_record.record_beside, path))
        await _gather([hashing, self._bucket.upload(key, path)])
        if (seen := hashing.result()) != checkpoint.manifest.files[name]:
            raise file_record.differs(path, seen, checkpoint.manifest.files[name])

    async def _download(self, key: str, path: Path, manifest: Manifest) -> None:
        expected = manifest.files[path.name]
        seen = await self._bucket.download(key, path, expected.size_bytes)
        if seen is None:
            raise file_record.corrupt(f"{self._what}: {key}", "is missing")
        if seen != expected:
            raise file_record.differs(f"{self._what}: {key}", seen, expected)

    async def _entry(self, run: RunKey, step: int) -> StoreEntry:
        place = f"{place_of(run)}{step:04d}/"
        objects = {each.key: each for each in await self._bucket.list(place)}
        if f"{place}{MANIFEST}" not in objects:
            raise CheckpointNotFoundError(f"there is no step {step} of run {run} in {self._what}", step=step)
        read = await self._read(run, step, objects)
        if isinstance(read, CheckpointCorruptError):
            raise read
        return read

    async def _read(
        self, run: RunKey, step: int, objects: Mapping[str, StoredObject]
    ) -> StoreEntry | CheckpointCorruptError:
        """What a step's objects are: the checkpoint, or why they are none."""
        place = f"{place_of(run)}{step:04d}/"
        key = f"{place}{MANIFEST}"
        try:
            manifest = await self._known_manifest(key, objects)
            if (manifest.run, manifest.step) != (run.run, step):
                raise file_record.corrupt(f"{self._what}: {key}", f"is of run {manifest.run!r} step {manifest.step}")
            return StoreEntry(manifest, self._dropped(keys_of(place, manifest), manifest, objects))
        except CheckpointCorruptError as error:
            return error

    async def _known_manifest(self, key: str, objects: Mapping[str, StoredObject]) -> Manifest:
        """A manifest, read once for as long as the server says that it is the same."""
        if key not in objects:
            raise file_record.corrupt(f"{self._what}: {key}", "is missing")
        known = self._manifests.get(key)
        if known is None or known[0] != objects[key].tag:
            data = await self._manifest(key)
            known = objects[key].tag, parse_manifest(data or b"", f"{self._what}: {key}")
            self._manifests[key] = known
        return known[1]

    def _dropped(
        self, files: Mapping[str, str], manifest: Manifest, objects: Mapping[str, StoredObject]
    ) -> frozenset[str]:
        dropped = set()
        for name, key in files.items():
            if name in DROPPABLE and key + DROPPED in objects:
                dropped.add(name)
            elif key not in objects:
                raise file_record.corrupt(f"{self._what}: {key}", "is missing")
            elif (size := objects[key].size_bytes) != manifest.files[name].size_bytes:
                expected = manifest.files[name].size_bytes
                raise file_record.corrupt(f"{self._what}: {key}", f"has {size} bytes; its manifest says {expected}")
        return frozenset(dropped)


def _local_files(checkpoint: Checkpoint) -> Sequence[str]:
    """Names of the files that are here; refused where they are not what the manifest says, bytes aside."""
    if read_manifest(checkpoint.directory) != checkpoint.manifest:
        raise file_record.corrupt(checkpoint.directory / MANIFEST, "is not the one that is to be committed")
    return check_layout(checkpoint.directory, checkpoint.manifest)


async def _gather(calls: Iterable[Awaitable[R]]) -> Sequence[R]:
    """Await all, not too many at once; where one fails the others are ended before it is raised."""
    limit = asyncio.Semaphore(_CALLS)

    async def one(call: Awaitable[R]) -> R:
        async with limit:
            return await call

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
