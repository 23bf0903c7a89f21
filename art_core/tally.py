"""What a gathering of rollouts counts and keeps, and how rollouts run at once."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol, Self

from pydantic import BaseModel


class Tally(Protocol):
    """Whoever gathers rollouts and decides how many may fail."""

    def succeeded(self, trajectory: Any) -> None:
        """A rollout has ended well."""
        ...

    def failed(self, error: Exception) -> None:
        """A rollout has raised; raises the error again where too many have."""
        ...


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


class _NoFailures:
    def succeeded(self, trajectory: Any) -> None:
        """Nothing to count."""

    def failed(self, error: Exception) -> None:
        raise error


class _AnyFailures(_NoFailures):
    def failed(self, error: Exception) -> None:
        """Nothing to count: the caller keeps it."""


KEPT: Tally = _AnyFailures()
"""For groups that keep every exception."""

current_tally: ContextVar[Tally] = ContextVar("current_tally", default=_NoFailures())  # noqa: B039 - has no state
"""The gathering that the running task belongs to; outside of any, the first failure is raised."""


async def run_all(awaitables: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all at once, results in the order given; when one raises or the caller is cancelled, none is left running.

    Args:
        awaitables: Coroutines or futures.
    """
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
