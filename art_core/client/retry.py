"""Try a rollout again when it raises."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
import operator
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

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
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function, ``async`` or not, so that it is called again when it raises.

    Args:
        max_attempts: Calls at most, the first included.
        delay: Seconds before the second call.
        backoff_factor: Each further wait is so many times the one before.
        exceptions: Which exceptions are tried again; others are raised at once.
        on_retry: Called with the exception and the number of calls so far.

    Raises:
        ConfigError: `max_attempts` is below 1.
    """
    if max_attempts < 1:
        raise ConfigError(f"max_attempts is {max_attempts!r}; allowed: 1 or more")
    growing = itertools.accumulate(itertools.repeat(backoff_factor), operator.mul, initial=delay)
    waits_s = list(itertools.islice(growing, max_attempts - 1))

    def failed(error: Exception, number: int, wait_s: float) -> None:
        _log.info("attempt %d of %d raised %r; next in %.3g s", number, max_attempts, error, wait_s)
        if on_retry is not None:
            on_retry(error, number)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", _awaited(function, exceptions, waits_s, failed))
        return _called(function, exceptions, waits_s, failed)

    return decorate


Failed = Callable[[Exception, int, float], None]


def _awaited(
    function: Callable[..., Any], exceptions: tuple[type[Exception], ...], waits_s: list[float], failed: Failed
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def attempt(*args: Any, **kwargs: Any) -> Any:
        for number, wait_s in enumerate(waits_s, 1):
            try:
                return await function(*args, **kwargs)
            except exceptions as error:
                failed(error, number, wait_s)
            await asyncio.sleep(wait_s)
        return await function(*args, **kwargs)

    return attempt


def _called(
    function: Callable[P, R], exceptions: tuple[type[Exception], ...], waits_s: list[float], failed: Failed
) -> Callable[P, R]:
    @functools.wraps(function)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> R:
        for number, wait_s in enumerate(waits_s, 1):
            try:
                return function(*args, **kwargs)
            except exceptions as error:
                failed(error, number, wait_s)
            time.sleep(wait_s)
        return function(*args, **kwargs)

    return attempt
