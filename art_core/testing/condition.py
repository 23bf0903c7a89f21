"""Waiting for what is to come about: bounded, and with words for what did not."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

T = TypeVar("T")

LONGEST_S = 240.0
"""Far more than anything takes that works: the bound is there to end a wait, not to say how fast something is."""

NOTICED_S = 2.0
"""Promised: an engine or a trainer that is killed is known to be dead by then."""
TOLD_S = 5.0
"""Promised: a call that a trainer was killed in has ended with its error by then."""


@contextmanager
def within(limit_s: float, what: str) -> Iterator[None]:
    """Fail where the block takes longer: for what is promised in seconds, and for nothing else.

    Args:
        limit_s: Seconds that are promised.
        what: What happens in the block, in words.
    """
    start = time.monotonic()
    yield
    taken_s = time.monotonic() - start
    if taken_s > limit_s:
        pytest.fail(f"after {taken_s:.2f} s; promised within {limit_s:g} s: {what}")


async def until(look: Callable[[], T | Awaitable[T]], what: str, longest_s: float = LONGEST_S) -> T:
    """Look again and again until what is seen is true.

    Only for what stays true once it is: a state that may be over between two looks can't be waited for. Have it last
    first, for example by a process that is suspended.

    Args:
        look: What to look at; may be a coroutine function.
        what: What is waited for, in words.
        longest_s: After how many seconds the test fails.

    Returns:
        What was seen at last.
    """
    seen: object = "nothing yet"
    try:
        async with asyncio.timeout(longest_s) as limit:
            while True:
                found = look()
                seen = value = await found if inspect.isawaitable(found) else found
                if value:
                    return value
                await asyncio.sleep(0.005)
    except TimeoutError:
        if not limit.expired():
            raise
        pytest.fail(f"not within {longest_s:g} s: {what}; seen: {seen!r}")
