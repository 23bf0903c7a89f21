"""Trajectories that are recorded while an agent talks to its model, instead of being written by the agent."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from art_core.errors import TrajectoryError
from art_core.trajectory import History, Message, Tools, Trajectory, recording

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


async def trajectory(coroutine: Coroutine[Any, Any, object]) -> Trajectory:
    """Run an agent and record what it and the model said to each other.

    What is recorded: chat completions through ``model.openai_client()``, also from tasks that the agent starts, but
    for streamed ones. A request that goes on where a recorded chat ended extends it; any other begins a further
    history of the same trajectory. The agent sets the reward: ``art.current_trajectory().reward = 1.0``.

    Args:
        coroutine: The agent's; what it returns is dropped.

    Returns:
        The trajectory, with its duration.

    Raises:
        TrajectoryError: It is no coroutine, so that what it does could not be told from what other tasks do.
    """
    if not inspect.iscoroutine(coroutine):
        raise TrajectoryError(
            f"art.trajectory() got a {type(coroutine).__name__}; allowed: a coroutine that has not been started, "
            f"such as rollout(model)"
        )
    with Trajectory() as recorded:
        await coroutine
    return recorded


@overload
def current_trajectory(*, required: Literal[True]) -> Trajectory:  # noqa: D418 - every public name has one
    """One that must be there."""
    ...


@overload
def current_trajectory(*, required: bool = False) -> Trajectory | None:  # noqa: D418
    """One that may be missing."""
    ...


def current_trajectory(*, required: bool = False) -> Trajectory | None:
    """The trajectory that records the running code.

    Args:
        required: Raise where there is none.

    Raises:
        TrajectoryError: There is none, and one is required.
    """
    if recording.get():
        return recording.get()[-1]
    if required:
        raise TrajectoryError("no trajectory is recording; run this inside `art.trajectory(...)`")
    return None


@contextmanager
def no_capture() -> Iterator[None]:
    """Record nothing inside the block, e.g. while a judge is asked; a new trajectory in it records."""
    token = recording.set(())
    try:
        yield
    finally:
        recording.reset(token)


def record_completion(trajectory: Trajectory, request: Mapping[str, Any], completion: ChatCompletion) -> None:
    """Add one exchange to a trajectory.

    Args:
        trajectory: Where it goes.
        request: The request's body.
        completion: The answer; each of its choices goes on from the request on its own.
    """
    messages: list[Message] = [_plain(message) for message in request["messages"]]
    tools = cast("Tools | None", request.get("tools") or None)
    for choice in completion.choices:
        history = _continued([trajectory, *trajectory.additional_histories], messages, tools)
        if history is None:
            history = History(tools=tools)
            trajectory.additional_histories.append(history)
        history.tools = tools
        history.messages_and_choices += [*messages[len(history.messages_and_choices) :], choice]


def _continued(histories: list[History], messages: list[Message], tools: Tools | None) -> History | None:
    """The history that the messages go on from: what was said so far, unchanged, or nothing yet."""
    wanted = [_content(message) for message in messages]
    for history in reversed(histories):
        said = [_content(message) for message in history.messages()]
        if not said or (history.tools == tools and len(said) < len(wanted) and wanted[: len(said)] == said):
            return history
    return None


def _plain(message: Any) -> Message:
    """A request's message; programs put the answer's own message object there too."""
    return cast("Message", dict(message) if isinstance(message, Mapping) else message.model_dump(exclude_none=True))


def _content(message: Mapping[str, Any]) -> tuple[object, ...]:
    """What of a message must be equal for it to be the same one."""
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return message["role"], message.get("content") or "", calls, message.get("tool_call_id")


_yielded: ContextVar[list[Trajectory] | None] = ContextVar("yielded", default=None)


def yield_trajectory(trajectory: Trajectory) -> None:
    """Hand a trajectory out of code whose return value is something else; see `capture_yielded_trajectory`.

    Raises:
        TrajectoryError: Nobody waits for one.
    """
    waiting = _yielded.get()
    if waiting is None:
        raise TrajectoryError("nobody waits for a trajectory; call this inside art.capture_yielded_trajectory(...)")
    waiting.append(trajectory)


async def capture_yielded_trajectory(coroutine: Coroutine[Any, Any, object]) -> Trajectory:
    """Run a coroutine and return the trajectory that it handed out, the last one of several.

    Raises:
        TrajectoryError: It handed out none.
    """
    waiting: list[Trajectory] = []
    token = _yielded.set(waiting)
    try:
        await coroutine
    finally:
        _yielded.reset(token)
    if not waiting:
        raise TrajectoryError("the coroutine ended without art.yield_trajectory(...)")
    return waiting[-1]
