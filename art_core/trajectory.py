"""Stage 1: what the agent did. A trajectory is the chat of one rollout, with the sampled choices kept whole."""

from __future__ import annotations

import inspect
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias, cast, overload

from openai.types.chat.chat_completion import Choice
from pydantic import BaseModel, BeforeValidator, Field, SkipValidation

from art_core.errors import TrajectoryError
from art_core.tally import KEPT, Tally, current_tally, run_all

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

    Message: TypeAlias = ChatCompletionMessageParam
    """A chat message as the OpenAI API spells it: ``role``, ``content``, ``tool_calls`` and so on."""
    Tool: TypeAlias = ChatCompletionToolUnionParam
else:
    # Checked against openai's types, pydantic would drop the keys that other providers add.
    Message = Tool = dict[str, Any]
Messages: TypeAlias = list[Message]
MetadataValue: TypeAlias = str | int | float | bool | None


def as_item(item: object) -> Message | Choice:
    """A chat item as a message or a choice; a dict with the key ``message`` is a dumped `Choice`.

    Args:
        item: A message dict, a `Choice`, or a dumped `Choice`.

    Raises:
        TrajectoryError: It is something else.
    """
    if isinstance(item, Choice):
        return item
    if isinstance(item, Mapping):
        return Choice.model_validate(item) if "message" in item else cast(Message, dict(item))
    raise TrajectoryError(
        f"messages_and_choices holds a {type(item).__name__}; allowed: a message dict, or the Choice itself "
        f"(append `completion.choices[0]`, not its message)"
    )


MessageOrChoice: TypeAlias = Annotated[SkipValidation[Message | Choice], BeforeValidator(as_item)]
MessagesAndChoices: TypeAlias = list[MessageOrChoice]
Tools: TypeAlias = list[Tool]


class _Record(BaseModel):
    """Dumps without defaults, so that an empty list or a reward of 0.0 does not stand on the wire."""

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As pydantic's, defaults dropped unless ``exclude_defaults=False`` is given."""
        return super().model_dump(**{"exclude_defaults": True, **options})

    def model_dump_json(self, **options: Any) -> str:
        """As pydantic's, defaults dropped unless ``exclude_defaults=False`` is given."""
        return super().model_dump_json(**{"exclude_defaults": True, **options})


class History(_Record):
    """One chat: messages of the environment and choices of the policy, in order."""

    messages_and_choices: MessagesAndChoices = []
    tools: Tools | None = None

    def messages(self) -> Messages:
        """The chat as plain messages, to be sent to a chat endpoint; a choice becomes its message."""
        return [_message(as_item(item)) for item in self.messages_and_choices]


class Trajectory(History):
    """One rollout and its reward; inside ``with Trajectory() as t`` the model's client records into it.

    `reward` may be set at any time until training; NaN and infinity are refused by the batch stage.
    """

    additional_histories: list[History] = []
    """Further chats of the same rollout (sub-agents, a compacted context); they share the reward."""
    reward: float = 0.0
    initial_policy_version: int | None = None
    """Policy step at the rollout's start; stands in for choices that name none."""
    final_policy_version: int | None = None
    metrics: dict[str, float | int | bool] = {}
    metadata: dict[str, MetadataValue] = {}
    logs: list[str] = []
    start_time: datetime = Field(default_factory=lambda: datetime.now().astimezone(), exclude=True)

    def __str__(self) -> str:
        return f"Trajectory(reward={self.reward}, metrics={self.metrics}, metadata={self.metadata})"

    def __enter__(self) -> Self:
        recording.set((*recording.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        recording.set(recording.get()[:-1])
        self.finish()

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
        items = [as_item(item) for item in self.messages_and_choices]
        return {
            "reward": self.reward,
            "metrics": self.metrics,
            "metadata": self.metadata,
            "messages": [dict(_message(item)) | {"trainable": isinstance(item, Choice)} for item in items],
            "tools": self.tools,
            "logs": self.logs,
        }


recording: ContextVar[tuple[Trajectory, ...]] = ContextVar("recording", default=())
"""The trajectories whose block the running code is in; the last one records."""


class RecordedException(BaseModel):
    """An exception of a rollout, as text."""

    type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Record an exception."""
        text = "".join(traceback.format_exception(error))
        return cls(type=type(error).__qualname__, message=str(error), traceback=text)


AWAITABLES = "TrajectoryGroup(<awaitables>) is deprecated; write art.trajectory_group(<awaitables>)"

Rollouts: TypeAlias = Iterable[Trajectory | BaseException] | Iterable[Awaitable[Trajectory]]


class TrajectoryGroup(_Record):
    """Trajectories of one task, compared with one another. Iterable and sized.

    Args:
        trajectories: Trajectories (exceptions among them are recorded), or awaitables of trajectories. With an
            awaitable among them the call gives no group but a `PendingGroup`, whose ``await`` gives the group.
        exceptions: Exceptions of rollouts that gave no trajectory.
        metadata: Anything about the task.
        metrics: Numbers about the group as a whole.
        logs: Lines of text.
    """

    trajectories: list[Trajectory] = []
    exceptions: list[RecordedException] = []
    metadata: dict[str, MetadataValue] = {}
    metrics: dict[str, float | int | bool] = {}
    logs: list[str] = []

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

    def __iter__(self) -> Iterator[Trajectory]:  # type: ignore[override]  # pydantic's yields (field, value)
        return iter(self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)


class PendingGroup(Awaitable[TrajectoryGroup]):
    """Rollouts that run when awaited; their exceptions are kept on the group as far as the gathering allows.

    Args:
        rollouts: Awaitables of trajectories; trajectories and exceptions may stand among them.
        details: The other arguments of `TrajectoryGroup`.
        keep_exceptions: Whether every exception is kept, whatever the gathering allows.
    """

    def __init__(self, rollouts: Sequence[Any], details: dict[str, Any], *, keep_exceptions: bool = False) -> None:
        self.rollouts = rollouts
        self.details = details
        self._keep = keep_exceptions

    def __await__(self) -> Generator[Any, None, TrajectoryGroup]:
        return self._gather().__await__()

    async def _gather(self) -> TrajectoryGroup:
        tally = KEPT if self._keep else current_tally.get()
        return TrajectoryGroup(await run_all([_outcome(rollout, tally) for rollout in self.rollouts]), **self.details)


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


def _message(item: Message | Choice) -> Message:
    if isinstance(item, Choice):
        # Templates read `content` even where the model only called a tool.
        return cast(Message, {**item.message.model_dump(exclude_none=True), "content": item.message.content or ""})
    return item
