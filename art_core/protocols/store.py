"""Contract of a checkpoint store.

Intent. A store makes a checkpoint visible whole or not at all, and never shows anything else.

Who calls, and how often. `commit` once per training step, never twice at once from one process; other processes may
commit the same step, and exactly one wins. `list` at start and for operations. `delete` on request of the user or a
retention policy.

Atomicity. Before `commit` returns the checkpoint may or may not be listed; after it returns it is durable. A crash at
any instant leaves a checkpoint listed whole or not listed. What a crashed commit left is invisible; the next process
that takes the run's lock (`art_core.run`), or a later call of the store by it, removes it.

Idempotence. Committing the same content again returns the stored one; other content at that step is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from art_core.checkpoint import Checkpoint, StoredCheckpoint


class CheckpointStore(Protocol):
    """Keeps a run's checkpoints; see the module's contract. `run` is always the run's directory."""

    async def commit(self, run: Path, checkpoint: Checkpoint) -> StoredCheckpoint:
        """Make a staged checkpoint visible and durable.

        Raises:
            CommitConflictError: Another checkpoint stands at that step.
            StoreError: Disk full, read-only, permission: names the path; the run is as it was.
        """
        ...

    async def list(self, run: Path) -> Sequence[StoredCheckpoint]:
        """The whole checkpoints, by rising step; what is not whole is left out and logged."""
        ...

    async def fetch(self, stored: StoredCheckpoint, directory: Path) -> Checkpoint:
        """Copy a checkpoint into an empty directory, every byte verified.

        Raises:
            CheckpointNotFoundError: It is gone.
            CheckpointCorruptError: A file differs from the manifest; names it.
        """
        ...

    async def delete(self, run: Path, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps, never a protected one (the backend knows what is served or leased).

        Returns:
            The steps that were deleted.

        Raises:
            StoreError: A step to delete is protected (nothing is deleted), or the system refuses.
        """
        ...
