"""Contract of a checkpoint store.

Intent. A step is always committed to the run's own directory on this machine first (`art_core.local_store`); an engine
loads it from there. A store holds a copy of every step somewhere else, so that a lost machine loses nothing. It makes
a checkpoint visible whole or not at all, and never gives out anything else.

Who calls, and how often. One process at a time copies a run's steps, by rising number, once per training step, in the
background; on another machine a second one may commit the same step, and exactly one wins. `check` once before
anything else; `list` at start and for operations; `fetch` where a step is wanted that is not here; the others on
request of the user or of a retention policy. Different calls may be under way at once, from one event loop.

Atomicity. Before `commit` returns the checkpoint may or may not be listed; after it returns it is durable. A crash at
any instant leaves a checkpoint listed whole or not listed; what it left besides is invisible, and `sweep` removes it.

Idempotence. Every method may be called again. Committing the same content again (`content_key`) returns what stands;
other content at that step is refused.

One winner. A store that declares CREATE_IF_ABSENT guarantees it among any number of committers. One that does not is
used under the run's lock, by one process of one machine; it says in its own documentation what holds beyond that.

Errors. What may pass by itself (time-outs, throttling, a server's failure, credentials that ran out) is a
`StoreUnavailableError`, which is retried; anything else is final.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from art_core.checkpoint import Checkpoint, Manifest
from art_core.run_key import RunKey


@dataclass(frozen=True)
class StoreEntry:
    """What a store holds of a step: all of its manifest's files but those dropped on purpose."""

    manifest: Manifest
    dropped: frozenset[str] = frozenset()

    @property
    def step(self) -> int:
        """The training step."""
        return self.manifest.step

    @property
    def size_bytes(self) -> int:
        """Of the files that are there."""
        return sum(file.size_bytes for name, file in self.manifest.files.items() if name not in self.dropped)


def content_key(manifest: Manifest) -> str:
    """What two commits of a step must agree on: all but metrics, which hold durations, and library versions.

    Returns:
        Its sha256, in hex.
    """
    content = manifest.model_dump(mode="json", exclude={"metrics", "versions"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CheckpointStore(Protocol):
    """Keeps copies of runs' checkpoints; see the module's contract."""

    async def check(self) -> None:
        """Make sure, before anything starts, that the store answers and keeps what it declares.

        Raises:
            CapabilityError: The server does not do what the store declares; says what would help.
            StoreUnavailableError: It can't be reached right now.
            StoreError: It refuses: no such place, no permission.
        """
        ...

    async def runs(self) -> Sequence[RunKey]:
        """The runs that have something in the store, sorted.

        Raises:
            StoreError: The store can't be read.
        """
        ...

    async def commit(self, run: RunKey, checkpoint: Checkpoint) -> StoreEntry:
        """Copy a checkpoint in, and make it visible and durable.

        Args:
            run: Which run.
            checkpoint: Local files, read and left as they are. Where its optimizer state was dropped, it is here too.

        Returns:
            What stands at that step now.

        Raises:
            CommitConflictError: Another checkpoint stands at that step.
            CheckpointCorruptError: A local file differs from the manifest; nothing has become visible.
            StoreError: The store refuses; the run is as it was.
        """
        ...

    async def list(self, run: RunKey) -> Sequence[StoreEntry]:
        """The whole checkpoints of a run, by rising step; what is not whole is left out and logged.

        Whole means: its manifest is that of this run and step, and every file is there in its size. Bytes are not read.

        Raises:
            StoreError: The store can't be read.
        """
        ...

    async def fetch(self, run: RunKey, step: int, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty local directory, every byte verified. Nothing is written outside of it.

        Args:
            run: Which run.
            step: Which step.
            directory: Made if absent; must be empty.

        Raises:
            CheckpointNotFoundError: There is no such step.
            CheckpointCorruptError: A file differs from the manifest, or the manifest is of something else; it is named.
            StoreError: The store can't be read, the directory is not empty, or the system refuses to write.
        """
        ...

    async def delete(self, run: RunKey, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one (the caller knows what is served, leased or the last).

        Returns:
            The steps that were deleted; one that is not there is passed over.

        Raises:
            StoreError: A step to delete is protected (nothing is deleted), or the store refuses.
        """
        ...

    async def drop_optimizer(self, run: RunKey, steps: Collection[int]) -> Sequence[int]:
        """Drop the optimizer state of steps; they stay whole, and can be verified as before.

        Its bytes go now, or with the next `sweep` that finds them old enough.

        Returns:
            The steps that have lost it just now.

        Raises:
            StoreError: The store refuses.
        """
        ...

    async def sweep(self, run: RunKey, older_than_s: float) -> int:
        """Remove what calls that were cut short have left of a run.

        Args:
            run: Which run.
            older_than_s: What is younger than that, by the store's own clock, may still be in the making and stays.

        Returns:
            How many files, objects or unfinished uploads were removed.

        Raises:
            StoreError: The store refuses.
        """
        ...
