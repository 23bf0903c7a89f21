"""Groups of rollouts: one that is awaited, or batch after batch of them while the next ones already run."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Required, TypedDict, Unpack

from art_core.client.gather import RolloutTally, finished_group, rollouts_in, shown
from art_core.client.keyword import check_keywords
from art_core.errors import ConfigError
from art_core.tally import RecordedException, current_tally
from art_core.trajectory import (
    MetadataValue,
    PendingGroup,
    Trajectory,
    TrajectoryGroup,
)


class GroupArgs(TypedDict, total=False):
    """Keywords of `trajectory_group`."""

    exceptions: Iterable[BaseException | RecordedException | Mapping[str, str]]
    """Exceptions of rollouts that gave no trajectory."""
    metadata: dict[str, MetadataValue] | None
    metrics: dict[str, float | int | bool] | None
    logs: list[str] | None
    return_exceptions: bool
    """True: what rollouts raise is kept on the group, however much it is. False: as far as the gathering around it
    allows; outside of any the first is raised."""


def trajectory_group(
    trajectories: Iterable[Trajectory | BaseException | Awaitable[Trajectory]], **details: Unpack[GroupArgs]
) -> Awaitable[TrajectoryGroup]:
    """Rollouts of one task, to be awaited, alone or by `gather_trajectory_groups`.

    Args:
        trajectories: Coroutines of trajectories; trajectories and exceptions may stand among them.
        **details: See `GroupArgs`.

    Returns:
        An awaitable of the group. When one rollout's exception is raised, or the caller is cancelled, none runs on.

    Raises:
        ConfigError: A keyword is unknown.
    """
    check_keywords("trajectory_group", details, GroupArgs.__annotations__, ())
    kept = {key: value for key, value in details.items() if key != "return_exceptions"}
    return PendingGroup(list(trajectories), kept, keep_exceptions=details.get("return_exceptions", False))


class BatchArgs(TypedDict, total=False):
    """Keywords of `trajectory_group_batches`."""

    batch_size: Required[int]
    """Groups a batch; the last may have fewer."""
    max_batch_exceptions: float
    """Exceptions allowed while one batch is gathered: a count, or between 0 and 1 a fraction of its rollouts."""
    max_concurrent_batches: int
    """Groups of so many batches run at once; default 4."""
    skip_batches: int
    """Batches left out at the start, as when a run is resumed."""
    pbar_desc: str | None
    """Text before the progress bar; None: no bar."""
    pbar_total_completion_tokens: bool
    """Ignored, as by `gather_trajectory_groups`."""


async def trajectory_group_batches(
    groups: Iterable[Awaitable[TrajectoryGroup] | TrajectoryGroup], **options: Unpack[BatchArgs]
) -> AsyncIterator[list[TrajectoryGroup]]:
    """Batches of finished groups, in the order in which groups finish; the next ones run while a batch is used.

    Args:
        groups: As for `gather_trajectory_groups`.
        **options: See `BatchArgs`.

    Yields:
        A batch. What a rollout raised, within `max_batch_exceptions`, is in its group's `exceptions`.

    Raises:
        ConfigError: An option is unknown, missing or out of range.
        Exception: The first exception beyond `max_batch_exceptions`, as the rollout raised it; the others are
            cancelled, as they are when the iteration is given up.
    """
    size, ahead = _sizes(options)
    unstarted = list(groups)[size * options.get("skip_batches", 0) :]
    unstarted.reverse()
    mean = sum(map(rollouts_in, unstarted)) / max(1, len(unstarted))
    running: list[asyncio.Task[TrajectoryGroup]] = []
    ready: list[TrajectoryGroup] = []
    relay = _Relay(round(mean * size), options.get("max_batch_exceptions", 0))
    context = contextvars.copy_context()
    context.run(current_tally.set, relay)
    try:
        while unstarted or running or ready:
            with shown(relay.tally, options.get("pbar_desc", "batches")):
                while len(ready) < size and (unstarted or running):
                    while unstarted and len(running) < size * ahead:
                        work = finished_group(unstarted.pop(), relay)
                        running.append(asyncio.get_running_loop().create_task(work, context=context.copy()))
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    # those that finish at the same moment stay in the order submitted
                    ready += [task.result() for task in running if task in done]
                    running = [task for task in running if task not in done]
            batch, ready = ready[:size], ready[size:]
            relay.next_batch()
            yield batch
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class _Relay:
    """Reports to the tally of the batch that is being gathered, whichever that is when a rollout ends."""

    def __init__(self, total: int, max_exceptions: float) -> None:
        self._total, self._max_exceptions = total, max_exceptions
        self.next_batch()

    def next_batch(self) -> None:
        self.tally = RolloutTally(self._total, self._max_exceptions)

    def succeeded(self, trajectory: Trajectory) -> None:
        self.tally.succeeded(trajectory)

    def failed(self, error: Exception) -> None:
        self.tally.failed(error)


def _sizes(options: BatchArgs) -> tuple[int, int]:
    check_keywords("trajectory_group_batches", options, BatchArgs.__annotations__, ("batch_size",))
    size, ahead = options["batch_size"], options.get("max_concurrent_batches", 4)
    for key, value, least in (
        ("batch_size", size, 1),
        ("max_concurrent_batches", ahead, 1),
        ("skip_batches", options.get("skip_batches", 0), 0),
    ):
        if value < least:
            raise ConfigError(f"{key} is {value!r}; allowed: {least} or more")
    return size, ahead
