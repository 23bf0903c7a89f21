"""Try a rollout again when it raises."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from art_core.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("art.client")


def retry(
    max_attempts: int = 3,
    delay: float = 0.25,
    backoff_factor: float = 2.0,
    exceptions: tuple[type[Exception], ...] = (Exception,),
    on_retry: Callable[[Exception, int], None] | None = None,
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Decorate a coroutine function so that it is called again when it raises.

    Args:
        max_attempts: Calls at most, the first included.
        delay: Seconds before the second call.
        backoff_factor: Each further wait is so many times the one before.
        exceptions: Which exceptions are tried again; others are raised at once.
        on_retry: Called with the exception and the number of calls so far.

    Raises:
        ConfigError: `max_attempts` is below 1, or what is decorated is no coroutine function.
    """
    if max_attempts < 1:
        raise ConfigError(f"max_attempts is {max_attempts!r}; allowed: 1 or more")

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"{function!r} is no coroutine function; retry decorates `async def` functions")

        @functools.wraps(function)
        async def attempt(*args: P.args, **kwargs: P.kwargs) -> R:
            wait_s = delay
            for number in range(1, max_attempts):
                try:
                    return await function(*args, **kwargs)
                except exceptions as error:
                    _log.info("attempt %d of %d raised %r; next in %.3g s", number, max_attempts, error, wait_s)
                    if on_retry is not None:
                        on_retry(error, number)
                await asyncio.sleep(wait_s)
                wait_s *= backoff_factor
            return await function(*args, **kwargs)

        return attempt

    return decorate
