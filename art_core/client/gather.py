"""Run rollouts at once, show how they go, keep what they gave and what they raised."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypedDict, Unpack

from openai.types.chat.chat_completion import Choice

from art_core.chat import as_item
from art_core.errors import ConfigError, LocalServingUnavailableError, TrajectoryError, nearest
from art_core.tally import Tally, current_tally, run_all
from art_core.trajectory import PendingGroup, Trajectory, TrajectoryGroup

AfterEach: TypeAlias = Callable[[TrajectoryGroup], Awaitable[TrajectoryGroup | list[TrajectoryGroup] | None]]


class GatherArgs(TypedDict, total=False):
    """Keywords of `gather_trajectory_groups`."""

    pbar_desc: str | None
    """Text before the progress bar; None: no bar. There is none either where standard error is no terminal."""
    pbar_total_completion_tokens: bool
    """Ignored; completion tokens are always among the shown metrics where choices tell them."""
    max_exceptions: float
    """Exceptions allowed: a count, or between 0 and 1 a fraction of all rollouts. One more is raised."""
    max_metrics: int | None
    """Show at most so many metrics beside the bar."""
    after_each: AfterEach | None
    """Called with each finished group; what it returns takes the group's place, None drops it."""


async def gather_trajectory_groups(
    groups: Iterable[Awaitable[TrajectoryGroup] | TrajectoryGroup], **options: Unpack[GatherArgs]
) -> list[TrajectoryGroup]:
    """Await groups at once.

    Args:
        groups: ``art.trajectory_group(rollout(...) for _ in range(n))``, or coroutines that return a group.
        **options: See `GatherArgs`.

    Returns:
        The groups in the order given. What a rollout raised, within `max_exceptions`, is in its group's `exceptions`.

    Raises:
        Exception: The first exception beyond `max_exceptions`, as the rollout raised it; the others are cancelled.
    """
    waiting = list(groups)
    after_each = options.get("after_each")
    total = sum(map(rollouts_in, waiting))

    async def one(group: Awaitable[TrajectoryGroup] | TrajectoryGroup, tally: RolloutTally) -> list[TrajectoryGroup]:
        finished = await finished_group(group, tally)
        if after_each is None:
            return [finished]
        replaced = await after_each(finished)
        if replaced is None:
            return []
        return replaced if isinstance(replaced, list) else [replaced]

    with _gathering(total, options) as tally:
        results = await run_all([one(group, tally) for group in waiting])
    return [group for result in results for group in result]


async def gather_trajectories(trajectories: Iterable[Awaitable[Any]], **options: Unpack[GatherArgs]) -> list[Any]:
    """Await trajectories, or lists of them, at once.

    Args:
        trajectories: Coroutines that return a `Trajectory` or several.
        **options: See `GatherArgs`; `after_each` has no meaning here.

    Returns:
        What each gave, in the order given; within `max_exceptions`, the exception in place of a result.

    Raises:
        Exception: The first exception beyond `max_exceptions`, as the rollout raised it; the others are cancelled.
    """
    waiting = list(trajectories)

    async def one(rollout: Awaitable[Any], tally: RolloutTally) -> Any:
        try:
            result = await rollout
        except Exception as error:  # noqa: BLE001 - the user's code: counted, and raised beyond the limit
            tally.failed(error)
            return error
        several = [result] if isinstance(result, Trajectory) else list(result)
        for trajectory in several:
            tally.succeeded(trajectory)
        return result if isinstance(result, Trajectory) else several

    with _gathering(len(waiting), options) as tally:
        return await run_all([one(rollout, tally) for rollout in waiting])


async def finished_group(group: Awaitable[TrajectoryGroup] | TrajectoryGroup, tally: Tally) -> TrajectoryGroup:
    """The finished group, counted; a coroutine that raises gives an empty one that holds the exception.

    Args:
        group: What is awaited.
        tally: Who counts.

    Raises:
        TrajectoryError: It gives no group.
    """
    finished: object = group
    if inspect.isawaitable(group):
        try:
            finished = await group
        except Exception as error:  # noqa: BLE001 - the user's code: kept on the group, and raised beyond the limit
            tally.failed(error)
            return TrajectoryGroup([error])
    if not isinstance(finished, TrajectoryGroup):
        raise TrajectoryError(
            f"a {type(finished).__name__} was gathered as a group; allowed: a TrajectoryGroup, or what gives one when "
            f"it is awaited, such as art.trajectory_group(rollouts)"
        )
    for trajectory in finished:
        tally.succeeded(trajectory)
    return finished


def rollouts_in(group: Awaitable[TrajectoryGroup] | TrajectoryGroup) -> int:
    """How many rollouts a group runs; 1 where that can't be known before it has."""
    return len(group.rollouts) if isinstance(group, PendingGroup) else 1


class RolloutTally:
    """Counts what a gathering gave; each trajectory and exception once, however many layers report it.

    Args:
        total: Rollouts, as far as known.
        max_exceptions: See `GatherArgs`.
    """

    def __init__(self, total: int, max_exceptions: float) -> None:
        self.total = total
        self.sums: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.trajectories: dict[int, Trajectory] = {}
        self.errors: dict[int, Exception] = {}
        self.show: Callable[[], None] = lambda: None
        """Called after each count."""
        self._allowed = max_exceptions * total if 0 < max_exceptions < 1 else max_exceptions

    @property
    def done(self) -> int:
        """Rollouts that have ended, well or not."""
        return len(self.trajectories) + len(self.errors)

    def succeeded(self, trajectory: Trajectory) -> None:
        """Count a trajectory."""
        if id(trajectory) in self.trajectories:
            return
        self.trajectories[id(trajectory)] = trajectory
        tokens = _completion_tokens(trajectory)
        if tokens:
            trajectory.metrics["completion_tokens"] = tokens
        for name, value in {"reward": trajectory.reward, **trajectory.metrics}.items():
            self.sums[name] += value  # type: ignore[assignment]  # a Counter holds floats as well
            self.counts[name] += 1
        self.show()

    def failed(self, error: Exception) -> None:
        """Count an exception; raises it where too many have been, or where no rollout can succeed any more."""
        self.errors[id(error)] = error
        self.show()
        if len(self.errors) > self._allowed or isinstance(error, LocalServingUnavailableError):
            raise error

    def means(self, limit: int | None) -> str:
        """The first metrics' means so far, as text."""
        names = list(self.sums)[:limit]
        shown = [f"{name}={self.sums[name] / self.counts[name]:.3g}" for name in names]
        return " ".join([*shown, f"exceptions={len(self.errors)}"] if self.errors else shown)


@contextmanager
def _gathering(total: int, options: GatherArgs) -> Iterator[RolloutTally]:
    """A tally that everything awaited inside the block reports to, shown as a progress bar."""
    for key in options:
        if key not in GatherArgs.__annotations__:
            raise ConfigError(f"gather has no keyword {key!r}; {nearest(key, GatherArgs.__annotations__)}")
    tally = RolloutTally(total, options.get("max_exceptions", 0))
    with shown(tally, options.get("pbar_desc", "gather"), options.get("max_metrics")):
        token = current_tally.set(tally)
        try:
            yield tally
        finally:
            current_tally.reset(token)


@contextmanager
def shown(tally: RolloutTally, description: str | None, max_metrics: int | None = None) -> Iterator[None]:
    """Show a tally as a progress bar for the block, where standard error is a terminal.

    Args:
        tally: What is shown.
        description: Text before the bar; None: no bar.
        max_metrics: Most metrics beside it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)  # one of its own: a console shows one live display at a time
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = description is None or not console.is_terminal
    with Progress(*columns, TextColumn("{task.fields[means]}"), console=console, disable=hidden) as progress:
        bar = progress.add_task(description or "", total=tally.total, means="")

        def show() -> None:
            # groups of unknown size may bring more rollouts than were counted on
            total, means = max(tally.total, tally.done), tally.means(max_metrics)
            progress.update(bar, completed=tally.done, total=total, means=means)

        tally.show = show
        yield


def _completion_tokens(trajectory: Trajectory) -> int:
    """Sampled tokens of all choices; 0 where a choice does not tell."""
    items = [as_item(item) for history in trajectory.histories() for item in history.messages_and_choices]
    lengths = [len((item.model_extra or {}).get("token_ids") or ()) for item in items if isinstance(item, Choice)]
    return sum(lengths) if all(lengths) else 0
