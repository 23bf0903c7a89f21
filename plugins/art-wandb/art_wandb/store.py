"""Checkpoints as versions of W&B artifacts.

    <entity>/<project>/<run>                     type ``lora``, alias ``step7``: adapter, probe, manifest; the manifest
                                                 as metadata too, so that a listing reads no files
    <entity>/<project>/<run>-optimizer-<digits>  type ``optimizer``, alias ``step7``: its state, which can be dropped

W&B shows a version once all of its files are there, and never changes them. It can't make a version only if there is
none of that step, so this store declares nothing: a run is committed to by one process, which holds the run's lock.
Beyond that: of several versions of a step the oldest counts, and a committer that finds another's before its own takes
its own away. That holds as far as versions are numbered in the order in which they become visible.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from art_core import disk, file_record
from art_core.checkpoint import (
    DROPPED,
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    OPTIMIZER,
    Checkpoint,
    Manifest,
    check_layout,
    verify,
)
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, CommitConflictError
from art_core.local_store import in_thread, make_empty, require_unprotected
from art_core.protocols.store import StoreEntry, content_key
from art_core.run_key import RunKey
from art_wandb.client import Upload, WandbClient, alias
from art_wandb.options import WandbStoreOptions
from art_wandb.version import DROPPED_FILES, TEXT, Held, Version, lora_metadata, state_metadata

_log = logging.getLogger("art.store")


class WandbStore:
    """Keeps copies of checkpoints as W&B artifacts; see `art_core.protocols.store`.

    Args:
        options: Which account.
    """

    def __init__(self, options: WandbStoreOptions) -> None:
        self._client = WandbClient(options)

    async def check(self) -> None:
        """Make sure that the server answers and knows the key."""
        await self._client.check()

    async def runs(self) -> Sequence[RunKey]:
        """The runs of all projects of the entity, sorted."""
        return await self._client.runs()

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        """Copy a checkpoint in, and make it visible and durable."""
        manifest = await in_thread(verify, checkpoint.directory, checkpoint.manifest)
        here = await in_thread(check_layout, checkpoint.directory, manifest)
        held = (await self._client.held(run)).get(manifest.step, Held())
        standing, state = held.adapter, held.state_of(content_key(manifest))
        if standing is not None:
            require_same(run, standing, manifest)
        if OPTIMIZER in manifest.files and not (standing is not None and standing.dropped):
            if OPTIMIZER in here:
                state = state or await self._add_state(run, checkpoint)
            elif standing is not None:
                standing = await self._client.mark(run, standing, {DROPPED_FILES: [OPTIMIZER]}, [])
        if standing is None:
            dropped = OPTIMIZER in manifest.files and OPTIMIZER not in here
            standing = await self.add_adapter(run, checkpoint, dropped=dropped)
        return _whole(run, standing, state)

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        """The whole checkpoints of a run, by rising step."""
        entries = []
        for held in (await self._client.held(run)).values():
            try:
                entries += [_whole(run, held.adapter, held.state)] if held.adapter is not None else []
            except CheckpointCorruptError as error:
                _log.warning("a step of run %s in W&B is left out: %s", run, error)
        return entries

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified."""
        held = (await self._client.held(run)).get(step, Held())
        version = held.adapter
        if version is None:
            raise CheckpointNotFoundError(f"there is no step {step} of run {run} in W&B", step=step)
        manifest = version.manifest(run)
        await in_thread(make_empty, directory)
        sizes = {name: record.size_bytes for name, record in manifest.files.items() if name != OPTIMIZER}
        sizes[MANIFEST] = MANIFEST_LIMIT_BYTES
        where = str(await in_thread(directory.absolute))
        seen = await self._client.fetch(run, ("lora", version), sizes, where)
        if OPTIMIZER in version.dropped & manifest.files.keys():
            with disk.disk_errors(f"fetch step {step}"):
                disk.write(directory / (OPTIMIZER + DROPPED), b"")
        elif OPTIMIZER in manifest.files and held.state is not None:
            limit = {OPTIMIZER: manifest.files[OPTIMIZER].size_bytes}
            seen |= await self._client.fetch(run, ("optimizer", held.state), limit, where)
        for name, record in manifest.files.items():
            if name in seen and seen[name] != record:
                raise file_record.differs(f"{run} v{version.number}: {name}", seen[name], record)
        await in_thread(_require_manifest, directory, version, MANIFEST in seen)
        await in_thread(check_layout, directory, manifest)
        return Checkpoint(directory, manifest)

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one."""
        require_unprotected(steps, protected)
        if not steps:
            return []
        found = {step: held for step, held in (await self._client.held(run)).items() if step in steps and held.adapters}
        # the newest versions go first (`art_wandb.artifact.remove`), so that none that was beaten ever comes to count
        await self._client.remove(run, "lora", [each for held in found.values() for each in held.adapters])
        await self._client.remove(run, "optimizer", [each for held in found.values() for each in held.states])
        return list(found)

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole."""
        if not steps:
            return []
        found = {step: held for step, held in (await self._client.held(run)).items() if step in steps and held.state}
        dropped = []
        for step, held in found.items():
            if held.adapter is not None and not held.adapter.dropped:
                await self._client.mark(run, held.adapter, {DROPPED_FILES: [OPTIMIZER]}, [])
                dropped.append(step)
        await self._client.remove(run, "optimizer", [each for held in found.values() for each in held.states])
        return dropped

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """Remove what calls that were cut short have left; W&B itself removes uploads that were."""
        now_s = await self._client.now_s()
        found = (await self._client.held(run)).values()
        beaten = [each for held in found for each in held.adapters[1:]]
        needed = [held.state for held in found if held.adapter is not None and not held.adapter.dropped]
        idle = [each for held in found for each in held.states if each not in needed]
        swept = 0
        for kind, versions in (("lora", beaten), ("optimizer", idle)):
            old = [each for each in versions if int(each.created_s) <= now_s - older_than_s]  # it says whole seconds
            await self._client.remove(run, kind, old)  # type: ignore[arg-type]
            swept += len(old)
        return swept

    async def adapter(self, run: RunKey, step: int) -> Version | None:
        """The version that counts as a step's; None where there is none."""
        return next(iter((await self._client.versions(run, "lora")).get(step, [])), None)

    async def add_adapter(self, run: RunKey, checkpoint: Checkpoint, *, dropped: bool) -> Version:
        """Add a step's adapter; there is none of that step yet, as far as is known.

        Args:
            run: Whose.
            checkpoint: The step, verified.
            dropped: Whether its optimizer state was dropped.

        Returns:
            The version that counts.

        Raises:
            CommitConflictError: Another committer was faster, with another checkpoint.
            StoreError: W&B refuses.
        """
        manifest = checkpoint.manifest
        names = [*(name for name in manifest.files if name != OPTIMIZER), MANIFEST]
        files = {name: checkpoint.directory / name for name in names}
        mine = await self._client.add(run, Upload("lora", manifest.step, files, lora_metadata(run, manifest, dropped)))
        listed = (await self._client.versions(run, "lora")).get(manifest.step, [])
        first = min([mine, *listed], key=lambda each: each.number)
        beaten = [each for each in listed if each.number > first.number and each.content == mine.content]
        if beaten:
            await self._client.remove(run, "lora", beaten)
            await self._client.mark(run, first, {}, [alias(manifest.step)])  # it had gone over to a version beaten
        require_same(run, first, manifest)
        return first

    async def _add_state(self, run: RunKey, checkpoint: Checkpoint) -> Version:
        manifest = checkpoint.manifest
        # the manifest makes it a version of its own, also where two steps have the same state
        files = {name: checkpoint.directory / name for name in (OPTIMIZER, MANIFEST)}
        return await self._client.add(run, Upload("optimizer", manifest.step, files, state_metadata(run, manifest)))


def require_same(run: RunKey, version: Version, manifest: Manifest) -> None:
    """Refuse to commit beside another checkpoint.

    Raises:
        CommitConflictError: The version is of another content.
    """
    if version.content != content_key(manifest):
        raise CommitConflictError(
            f"another checkpoint stands at step {manifest.step} of run {run} in W&B, as v{version.number}; delete that "
            f"step there first, or train from it",
            step=manifest.step,
        )


def _whole(run: RunKey, version: Version, state: Version | None) -> StoreEntry:
    manifest = version.manifest(run)
    text = len(str(version.metadata[TEXT]).encode())
    sizes = [record.size_bytes for name, record in manifest.files.items() if name != OPTIMIZER]
    version.require_size(f"{run} v{version.number}", sum(sizes) + text, len(sizes) + 1)
    dropped = version.dropped & manifest.files.keys()
    if OPTIMIZER in manifest.files and not dropped:
        if state is None:
            raise file_record.corrupt(f"{run} step {version.step}: {OPTIMIZER}", "is missing")
        size = manifest.files[OPTIMIZER].size_bytes
        state.require_size(f"{run} step {version.step}: {OPTIMIZER}", size + text, 2)
    return StoreEntry(manifest, frozenset(dropped))


def _require_manifest(directory: Path, version: Version, fetched: bool) -> None:
    path = directory / MANIFEST
    if not fetched:
        raise file_record.corrupt(path, "is missing")
    if path.read_bytes() != str(version.metadata[TEXT]).encode():
        raise file_record.corrupt(path, "is not the one that stands in the version's metadata")
