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
from art_wandb.client import Upload, WandbClient
from art_wandb.options import WandbStoreOptions
from art_wandb.version import DROPPED_FILES, TEXT, Version, lora_metadata, state_metadata

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
        await self._client.entity()

    async def runs(self) -> Sequence[RunKey]:
        """The runs of all projects of the entity, sorted."""
        return await self._client.runs()

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        """Copy a checkpoint in, and make it visible and durable."""
        manifest = await in_thread(verify, checkpoint.directory, checkpoint.manifest)
        here = await in_thread(check_layout, checkpoint.directory, manifest)
        standing = await self.adapter(run, manifest.step)
        if standing is not None:
            require_same(run, standing, manifest)
        if OPTIMIZER in manifest.files and not (standing is not None and standing.dropped):
            if OPTIMIZER in here:
                await self._add_state(run, checkpoint)
            elif standing is not None:
                await self._client.mark(run, standing, {DROPPED_FILES: [OPTIMIZER]}, [])
                standing = await self.adapter(run, manifest.step)
        if standing is None:
            dropped = OPTIMIZER in manifest.files and OPTIMIZER not in here
            standing = await self.add_adapter(run, checkpoint, dropped=dropped)
        return _whole(run, standing, (await self._client.versions(run, "optimizer")).get(manifest.step, []))

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        """The whole checkpoints of a run, by rising step."""
        steps, states = await self._client.versions(run, "lora"), await self._client.versions(run, "optimizer")
        entries = []
        for step, versions in sorted(steps.items()):
            try:
                entries.append(_whole(run, versions[0], states.get(step, [])))
            except CheckpointCorruptError as error:
                _log.warning("a step of run %s in W&B is left out: %s", run, error)
        return entries

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified."""
        version = await self.adapter(run, step)
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
        elif OPTIMIZER in manifest.files:
            limit = {OPTIMIZER: manifest.files[OPTIMIZER].size_bytes}
            states = (await self._client.versions(run, "optimizer")).get(step, [])
            for state in states[:1]:
                seen |= await self._client.fetch(run, ("optimizer", state), limit, where)
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
        found, states = await self._client.versions(run, "lora"), await self._client.versions(run, "optimizer")
        present = sorted(set(steps) & found.keys())
        await self._client.remove(run, "lora", [each for step in present for each in found[step]])
        await self._client.remove(run, "optimizer", [each for step in present for each in states.get(step, [])])
        return present

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole."""
        if not steps:
            return []
        found, states = await self._client.versions(run, "lora"), await self._client.versions(run, "optimizer")
        dropped = [step for step in sorted(set(steps) & found.keys() & states.keys()) if not found[step][0].dropped]
        for step in dropped:
            await self._client.mark(run, found[step][0], {DROPPED_FILES: [OPTIMIZER]}, [])
        await self._client.remove(run, "optimizer", [each for step in dropped for each in states[step]])
        return dropped

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """Remove what calls that were cut short have left; W&B itself removes uploads that were."""
        now_s = await self._client.now_s()
        found, states = await self._client.versions(run, "lora"), await self._client.versions(run, "optimizer")
        beaten = [each for versions in found.values() for each in versions[1:]]
        needed = {step for step, versions in found.items() if not versions[0].dropped}
        idle = [each for step, versions in states.items() for each in versions[step in needed :]]
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
        await self._client.add(run, Upload("lora", manifest.step, files, lora_metadata(run, manifest, dropped)))
        versions = (await self._client.versions(run, "lora"))[manifest.step]
        mine = content_key(manifest)
        await self._client.remove(run, "lora", [each for each in versions[1:] if each.content == mine])
        require_same(run, versions[0], manifest)
        return versions[0]

    async def _add_state(self, run: RunKey, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        # the manifest makes it a version of its own, also where two steps have the same state
        files = {name: checkpoint.directory / name for name in (OPTIMIZER, MANIFEST)}
        await self._client.add(run, Upload("optimizer", manifest.step, files, state_metadata(run, manifest)))


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


def _whole(run: RunKey, version: Version, states: Sequence[Version]) -> StoreEntry:
    manifest = version.manifest(run)
    text = len(str(version.metadata[TEXT]).encode())
    sizes = [record.size_bytes for name, record in manifest.files.items() if name != OPTIMIZER]
    version.require_size(f"{run} v{version.number}", sum(sizes) + text, len(sizes) + 1)
    dropped = version.dropped & manifest.files.keys()
    if OPTIMIZER in manifest.files and not dropped:
        if not states:
            raise file_record.corrupt(f"{run} step {version.step}: {OPTIMIZER}", "is missing")
        size = manifest.files[OPTIMIZER].size_bytes
        states[0].require_size(f"{run} step {version.step}: {OPTIMIZER}", size + text, 2)
    return StoreEntry(manifest, frozenset(dropped))


def _require_manifest(directory: Path, version: Version, fetched: bool) -> None:
    path = directory / MANIFEST
    if not fetched:
        raise file_record.corrupt(path, "is missing")
    if path.read_bytes() != str(version.metadata[TEXT]).encode():
        raise file_record.corrupt(path, "is not the one that stands in the version's metadata")
