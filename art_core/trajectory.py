"""Stage 1: what the agent did. A trajectory is the chat of one rollout, with the sampled choices kept whole."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Self, TypeAlias, overload

from openai.types.chat.chat_completion import Choice
from pydantic import ConfigDict, Field, model_validator

from art_core.chat import History, Messages, Record, TrajectoryExchanges, as_item, as_message, chats, family
from art_core.errors import TrajectoryError, nearest
from art_core.tally import KEPT, RecordedException, Tally, current_tally, run_all

MetadataValue: TypeAlias = Any
"""Anything that can be written as JSON, at the latest when it is logged."""
MIXED = "A trajectory cannot contain both exchanges and legacy histories"


class Trajectory(History):
    """One rollout and its reward.

    What was said is written by the program, in `messages_and_choices` and `additional_histories`, or recorded in
    `exchanges` by the model's client inside ``with Trajectory() as t``; never both. `reward` may be set at any time
    until training; NaN and infinity are refused by the batch stage.
    """

    model_config = ConfigDict(validate_assignment=True)
    exchanges: TrajectoryExchanges = TrajectoryExchanges()
    """Requests and answers that were recorded."""
    additional_histories: list[History] = Field(default_factory=list)
    """Further chats of the same rollout (sub-agents, a compacted context); they share the reward."""
    reward: float = 0.0
    initial_policy_version: int | None = None
    """Policy step at the rollout's start; stands in for choices that name none."""
    final_policy_version: int | None = None
    metrics: dict[str, float | int | bool] = Field(default_factory=dict)
    metadata: dict[str, MetadataValue] = Field(default_factory=dict)
    logs: list[str] = Field(default_factory=list)
    start_time: datetime = Field(default_factory=lambda: datetime.now().astimezone(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _say_what_is_left_out(cls, data: Any) -> Any:
        if isinstance(data, dict) and cls.model_config.get("extra") is None:
            for key in data.keys() - cls.model_fields.keys():
                warnings.warn(
                    f"Trajectory has no field {key!r}, left out; {nearest(key, cls.model_fields)}", stacklevel=3
                )
        return data

    @model_validator(mode="after")
    def _one_representation(self) -> Self:
        if self._mixed():
            raise ValueError(MIXED)
        return self

    def _mixed(self) -> bool:
        written = self.messages_and_choices or self.tools is not None or self.additional_histories
        return bool(self.exchanges and written)

    def __str__(self) -> str:
        return f"Trajectory(reward={self.reward}, metrics={self.metrics}, metadata={self.metadata})"

    def __enter__(self) -> Self:
        recording.set((*recording.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        if self is not next(reversed(recording.get()), None):
            raise TrajectoryError("the blocks of two trajectories overlap; end the inner one first")
        recording.set(recording.get()[:-1])
        self.finish()

    def histories(self, *, model: str | None = None) -> list[History]:
        """Every chat of the rollout, however it was written down, the main one first.

        Args:
            model: Recorded chats of this model only, whatever its step: ``agent`` takes ``agent@7`` too.

        Raises:
            TrajectoryError: Chats were both written and recorded.
        """
        if not self.exchanges:
            return [self, *self.additional_histories]
        if self._mixed():
            raise TrajectoryError(MIXED)
        wanted = [e for e in self.exchanges.chat_completions if model is None or family(e.model) == family(model)]
        return chats(wanted)

    def history(self, *, model: str | None = None) -> History:
        """The only chat of the rollout.

        Args:
            model: See `histories`.

        Raises:
            TrajectoryError: There is none, or more than one.
        """
        found = self.histories(model=model)
        if len(found) != 1:
            raise TrajectoryError(f"the trajectory has {len(found)} chats, not one; read histories()")
        return found[0]

    def messages(self) -> Messages:
        """The main chat as plain messages, to be sent to a chat endpoint; a choice becomes its message.

        Raises:
            TrajectoryError: It was recorded, and there is more than one.
        """
        return self.history().messages() if self.exchanges else super().messages()

    def log(self, message: str) -> None:
        """Add a line to `logs`."""
        self.logs.append(message)

    def finish(self) -> Self:
        """Write ``metrics["duration"]``, seconds since `start_time`, and return the trajectory."""
        self.metrics["duration"] = (datetime.now().astimezone() - self.start_time).total_seconds()
        return self

    @asynccontextmanager
    async def track_duration(self, name: str) -> AsyncIterator[None]:
        """Add the block's seconds to ``metrics["<name>_duration"]``, also when it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            key = f"{name}_duration"
            self.metrics[key] = self.metrics.get(key, 0.0) + time.monotonic() - start

    def for_logging(self) -> dict[str, Any]:
        """The trajectory as plain data for people: its messages say whether they are trained on."""
        if self.exchanges:
            return self.model_dump(mode="json")
        items = [as_item(item) for item in self.messages_and_choices]
        return {
            "reward": self.reward,
            "initial_policy_version": self.initial_policy_version,
            "final_policy_version": self.final_policy_version,
            "metrics": self.metrics,
            "metadata": self.metadata,
            "messages": [dict(as_message(item)) | {"trainable": isinstance(item, Choice)} for item in items],
            "tools": self.tools,
            "logs": self.logs,
        }


recording: ContextVar[tuple[Trajectory, ...]] = ContextVar("recording", default=())
"""The trajectories whose block the running code is in; the last one records."""


@contextmanager
def no_capture() -> Iterator[None]:
    """Record nothing inside the block, e.g. while a judge is asked; a new trajectory in it records."""
    token = recording.set(())
    try:
        yield
    finally:
        recording.reset(token)


AWAITABLES = "TrajectoryGroup(<awaitables>) is deprecated; write art.trajectory_group(<awaitables>)"

Rollouts: TypeAlias = Iterable[Trajectory | BaseException] | Iterable[Awaitable[Trajectory]]


class TrajectoryGroup(Record):
    """Trajectories of one task, compared with one another. Iterable and sized.

    Args:
        trajectories: Trajectories (exceptions among them are recorded), or awaitables of trajectories. With an
            awaitable among them the call gives no group but a `PendingGroup`, whose ``await`` gives the group.
        exceptions: Exceptions of rollouts that gave no trajectory.
        metadata: Anything about the task.
        metrics: Numbers about the group as a whole.
        logs: Lines of text.
    """

    trajectories: list[Trajectory] = Field(default_factory=list)
    exceptions: list[RecordedException] = Field(default_factory=list)
    metadata: dict[str, MetadataValue] = Field(default_factory=dict)
    metrics: dict[str, float | int | bool] = Field(default_factory=dict)
    logs: list[str] = Field(default_factory=list)

    @overload
    def __new__(cls, trajectories: Iterable[Trajectory | BaseException] = (), **details: Any) -> Self: ...
    @overload
    def __new__(cls, trajectories: Iterable[Awaitable[Trajectory]], **details: Any) -> PendingGroup: ...  # type: ignore[misc]
    def __new__(cls, trajectories: Rollouts = (), **details: Any) -> Self | PendingGroup:  # type: ignore[misc]
        """A group, or, given awaitables, what can be awaited for one."""
        items = list(trajectories)
        if any(inspect.isawaitable(item) for item in items):
            warnings.warn(AWAITABLES, DeprecationWarning, stacklevel=2)
            return PendingGroup(items, details)
        group = super().__new__(cls)
        group.__dict__["given"] = items  # an iterator is spent now; __init__ is handed the spent one
        return group

    def __init__(
        self,
        trajectories: Rollouts = (),
        *,
        exceptions: Iterable[BaseException | RecordedException | Mapping[str, str]] = (),
        metadata: dict[str, MetadataValue] | None = None,
        metrics: dict[str, float | int | bool] | None = None,
        logs: list[str] | None = None,
    ) -> None:
        items = self.__dict__.pop("given", trajectories)
        raised = [item for item in items if isinstance(item, BaseException)]
        details = {"metadata": metadata, "metrics": metrics, "logs": logs}
        super().__init__(
            trajectories=[item for item in items if not isinstance(item, BaseException)],
            exceptions=[
                RecordedException.of(error) if isinstance(error, BaseException) else error
                for error in [*raised, *exceptions]
            ],
            **{key: value for key, value in details.items() if value is not None},
        )

    def log(self, message: str) -> None:
        """Add a line to `logs`."""
        self.logs.append(message)

    def __iter__(self) -> Iterator[Trajectory]:  # type: ignore[override]  # pydantic's yields (field, value)
        return iter(self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)


class PendingGroup(Coroutine[Any, Any, TrajectoryGroup]):
    """Rollouts that run when awaited; their exceptions are kept on the group as far as the gathering allows.

    It is a coroutine, so that ``asyncio.create_task`` takes it, and knows its rollouts before they run.

    Args:
        rollouts: Awaitables of trajectories; trajectories and exceptions may stand among them.
        details: The other arguments of `TrajectoryGroup`.
        keep_exceptions: Whether every exception is kept, whatever the gathering allows.
    """

    def __init__(self, rollouts: Sequence[Any], details: dict[str, Any], *, keep_exceptions: bool = False) -> None:
        self.rollouts = rollouts
        self.details = details
        self._keep = keep_exceptions
        self._running: Coroutine[Any, Any, TrajectoryGroup] | None = None

    def __await__(self) -> Generator[Any, Any, TrajectoryGroup]:
        return self._run().__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        return self._run().send(value)

    def throw(self, *error: Any) -> Any:
        """As a coroutine's."""
        return self._run().throw(*error)

    def close(self) -> None:
        """As a coroutine's; the rollouts are ended where they stand."""
        if self._running is not None:
            self._running.close()
        else:
            for rollout in filter(inspect.iscoroutine, self.rollouts):
                rollout.close()

    def _run(self) -> Coroutine[Any, Any, TrajectoryGroup]:
        if self._running is None:
            self._running = self._gather()
        return self._running

    async def _gather(self) -> TrajectoryGroup:
        tally = KEPT if self._keep else current_tally.get()
        with no_capture():  # the rollouts are trajectories of their own
            outcomes = await run_all([_outcome(rollout, tally) for rollout in self.rollouts])
        return TrajectoryGroup(outcomes, **self.details)


async def _outcome(rollout: Any, tally: Tally) -> Trajectory | BaseException:
    if not inspect.isawaitable(rollout):
        given: Trajectory | BaseException = rollout
        return given
    try:
        trajectory = await rollout
    except Exception as error:  # noqa: BLE001 - the user's code: kept on the group, counted, raised beyond the limit
        tally.failed(error)
        return error
    if not isinstance(trajectory, Trajectory):
        raise TrajectoryError(f"a rollout returned a {type(trajectory).__name__}; it must return an art.Trajectory")
    tally.succeeded(trajectory)
    return trajectory
