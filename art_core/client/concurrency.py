"""At most so many calls of a coroutine function at once."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from art_core.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def limit_concurrency(
    n: int, derive_key: Callable[..., str] | None = None
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Decorate a coroutine function so that further calls wait their turn.

    Args:
        n: Calls at once, at most.
        derive_key: Called with a call's own arguments; calls with different keys don't wait for one another.

    Raises:
        ConfigError: `n` is below 1, or what is decorated is no coroutine function.
    """
    if n < 1:
        raise ConfigError(f"n is {n!r}; allowed: 1 or more")

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(
                f"{function!r} is no coroutine function; limit_concurrency decorates `async def` functions"
            )
        turns: dict[str, asyncio.Semaphore] = {}

        @functools.wraps(function)
        async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            key = derive_key(*args, **kwargs) if derive_key is not None else ""
            async with turns.setdefault(key, asyncio.Semaphore(n)):
                return await function(*args, **kwargs)

        return limited

    return decorate
