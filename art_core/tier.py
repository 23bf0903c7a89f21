"""A run's checkpoints as the straight line sees them: committed on this machine, then copied to the store, if any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from art_core.adapter_file import read_adapter_config
from art_core.base_model import base_digest
from art_core.checkpoint import ADAPTER_CONFIG, Checkpoint, StoredCheckpoint
from art_core.config import Timeouts
from art_core.errors import CommitConflictError, ConfigError
from art_core.intake import require_adapter, require_arrays
from art_core.local_store import LocalStore
from art_core.protocols.store import CheckpointStore, StoreEntry, content_key
from art_core.replication import Replicator
from art_core.retention import Retention, scores
from art_core.run import RunDirectory, RunRecord
from art_core.run_key import RunKey

Durable = Literal["local", "remote"]
"""What a training step waits for before it is served: this machine's disk, or the store as well."""

MAX_LAG_STEPS = 8
"""How many steps may wait to be copied when the next one is begun."""

_log = logging.getLogger("art.store")


class TieredStore:
    """One run's checkpoints.

    Args:
        run: Held by this process.
        remote: The store that steps are copied to; None: the run's directory is the only place.
        durable: What a step waits for.
        timeouts: For the waits.
        retention: What is kept.
    """

    def __init__(
        self,
        run: RunDirectory,
        remote: CheckpointStore | None,
        durable: Durable,
        timeouts: Timeouts,
        retention: Retention,
    ) -> None:
        self.run = run
        self._remote = remote
        self._durable = durable
        self.timeouts = timeouts
        self._retention = retention
        self._steps: set[int] = set()
        self._with_optimizer: set[int] = set()
        self._local = LocalStore()
        self._replicator: Replicator | None = None

    async def open(self, base_model: str) -> StoredCheckpoint | None:
        """Take over a newer step from the store, if it holds one, and begin to copy what it lacks.

        Args:
            base_model: Local directory of the base model, or its hub name.

        Returns:
            The newest step; None: the run has none yet.

        Raises:
            CapabilityError: The store does not keep what it declares.
            CommitConflictError: Another machine has trained other steps under the same numbers.
            ConfigError: The store's newest step was trained on another base model or with another adapter shape.
            CheckpointCorruptError: The store's newest step is damaged; the file is named.
            StoreError: The store can't be reached, or refuses.
        """
        stored = await self.list()
        self._remember(each.step for each in stored)
        if self._remote is None:
            return stored[-1] if stored else None
        record = await asyncio.to_thread(self.run.record)
        replicator = self._replicator = Replicator(self._remote, RunKey(record.project, record.run))
        held = await replicator.entries()
        _require_one_history(stored, held)
        self._steps |= {each.step for each in held}  # a machine that has lost its own keeps the store's in order too
        self._with_optimizer |= {each.step for each in held if not each.dropped}
        newest = held[-1].step if held else -1
        if newest > (stored[-1].step if stored else -1):
            return await self._restore(replicator, newest, base_model, record)
        await replicator.copy([each for each in stored if each.step > newest])
        return stored[-1] if stored else None

    async def close(self) -> None:
        """Give copying a little time to end; idempotent."""
        replicator, self._replicator = self._replicator, None
        if replicator is not None:
            await replicator.close(self.timeouts.store_close_s)

    async def list(self) -> Sequence[StoredCheckpoint]:
        """The whole checkpoints on this machine, by rising step."""
        return await self._local.list(self.run.path)

    async def ready(self) -> None:
        """Wait, before a step is begun, while too many steps wait to be copied.

        Raises:
            StoreUnavailableError: The store did not catch up in time; nothing has happened.
            StoreError: Copying has halted, and does so again; every step is safe on this machine.
        """
        if self._replicator is not None:
            await self._replicator.resume()
            await self._replicator.wait(MAX_LAG_STEPS - 1, self.timeouts.store_wait_s)

    async def commit(self, checkpoint: Checkpoint) -> StoredCheckpoint:
        """Make a staged checkpoint visible and durable here; copying it begins.

        Raises:
            CommitConflictError: Another checkpoint stands at that step.
            StoreError: The system refuses; the run is as it was.
        """
        stored = await self._local.commit(self.run.path, checkpoint)
        self._remember([stored.step])
        if self._replicator is not None:
            await self._replicator.copy([stored])
        return stored

    async def settle(self) -> None:
        """Wait until the last committed step is as durable as was asked for.

        Raises:
            StoreUnavailableError: The store did not take it in time; it is safe here, and goes on being copied.
            CheckpointError: It is damaged here, so that the store could not take it.
            StoreError: Copying has halted.
        """
        if self._replicator is not None and self._durable == "remote":
            await self._replicator.wait(0, self.timeouts.store_wait_s)
            if self._steps and (error := self._replicator.damaged.get(max(self._steps))):
                raise error

    async def delete(self, steps: Collection[int], protected: Collection[int]) -> Sequence[int]:
        """Delete steps here, and soon in the store; never a protected one.

        Returns:
            The steps that were deleted here.

        Raises:
            StoreError: A step to delete is protected (nothing is deleted), or the system refuses.
        """
        deleted = await self._local.delete(self.run.path, steps, protected)
        self._steps -= set(deleted)
        self._with_optimizer -= set(deleted)
        if self._replicator is not None and steps:
            await self._replicator.delete(steps, protected)
        return deleted

    async def retain(self, protected: Collection[int]) -> None:
        """Let go what the retention policy does not keep, of the steps that don't wait to be copied.

        Args:
            protected: Steps that are served or leased.

        Raises:
            StoreError: The system refuses.
        """
        waiting = self._replicator.waiting if self._replicator is not None else frozenset[int]()
        history = await asyncio.to_thread(self.run.history) if self._retention.best is not None else []
        found = scores(history, self._retention.best or "")
        plan = self._retention.plan(self._steps, found, {*protected, *waiting})
        await self.delete(plan.delete, protected)
        if drop := (plan.drop_optimizer & self._with_optimizer) - waiting:
            await self._local.drop_optimizer(self.run.path, drop)
            self._with_optimizer -= drop
            if self._replicator is not None:
                await self._replicator.drop_optimizer(drop)

    def metrics(self) -> dict[str, float]:
        """How far the store is behind; empty where there is none."""
        if self._replicator is None:
            return {}
        lag = self._replicator.lag
        return {"store/lag_steps": float(lag.steps), "store/lag_s": lag.seconds}

    def _remember(self, steps: Iterable[int]) -> None:
        """Keep in mind which steps there are, so that a training step need not read ten thousand manifests."""
        new = set(steps)
        self._steps |= new
        self._with_optimizer |= new

    async def _restore(self, replicator: Replicator, step: int, base_model: str, record: RunRecord) -> StoredCheckpoint:
        directory = self.run.stage()
        try:
            checkpoint = await replicator.fetch(step, directory)
            await asyncio.to_thread(_require_fit, checkpoint, base_model, record)
            stored = await self._local.commit(self.run.path, checkpoint)
            self._remember([step])
        finally:
            self.run.discard(directory)
        _log.info("step %d of run %s was taken over from the store", step, record.run)
        return stored


def _require_one_history(here: Sequence[StoredCheckpoint], there: Sequence[StoreEntry]) -> None:
    """Refuse a run that another machine has taken elsewhere since the two last agreed."""
    stored = {each.step: each.manifest for each in here}
    common = [each.manifest for each in there if each.step in stored]
    if common and content_key(common[-1]) != content_key(stored[common[-1].step]):
        raise CommitConflictError(
            f"step {common[-1].step} of run {common[-1].run!r} is another one in the store than here: two machines "
            f"have trained it; keep this machine's by a fork under another run name (art checkpoints fork), and go on "
            f"from the store's once {here[-1].directory.parent} is removed",
            step=common[-1].step,
        )


def _require_fit(checkpoint: Checkpoint, base_model: str, record: RunRecord) -> None:
    """Refuse a step of another base model or adapter shape, and files that are not what they are called."""
    require_arrays(checkpoint)
    manifest, directory = checkpoint.manifest, Path(base_model)
    fields = read_adapter_config(checkpoint.directory / ADAPTER_CONFIG)
    digest = base_digest(directory) if directory.is_dir() else manifest.base_model.digest
    for what, before, now in (
        ("base model", manifest.base_model.digest, digest),
        ("LoRA rank", fields["r"], record.lora.rank),
        ("LoRA alpha", fields["lora_alpha"], record.lora.alpha),
    ):
        if before != now:
            raise ConfigError(
                f"step {manifest.step} of run {manifest.run!r} in the store was made with {what} {before!r}, not "
                f"{now!r}; resume it with the same, or choose another run name"
            )
    require_adapter(checkpoint.directory, base_model, record.lora)
