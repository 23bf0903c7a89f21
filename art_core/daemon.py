"""Blocking calls of client libraries in threads that keep neither a cancelled caller nor a program's end waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

PATIENCE_S = 2.0
"""A cancelled caller waits so long for the call's end. A call that a silent server holds up is left behind."""


class GivenUpError(Exception):
    """The caller was cancelled; nobody sees this."""


def spawn(work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Future[R]:
    """Run work in a daemon thread of its own: a pool's threads are waited for at a program's end, be it for minutes.

    Returns:
        Its result, or what it has raised.
    """
    result = Future[R]()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(work(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - it is the caller who gets it
            result.set_exception(error)

    threading.Thread(target=run, name="art-daemon", daemon=True).start()
    return result


def until(given_up: threading.Event, each: Iterable[T]) -> Iterator[T]:
    """Go through things until the caller is cancelled.

    Raises:
        GivenUpError: He is.
    """
    for thing in each:
        if given_up.is_set():
            raise GivenUpError
        yield thing


async def in_daemon(work: Callable[[threading.Event], R]) -> R:
    """Run blocking work in a daemon thread; see `PATIENCE_S` for who is cancelled meanwhile.

    Args:
        work: Gets an event that is set once the caller is cancelled. What takes long looks at it; see `until`.
    """
    given_up = threading.Event()
    running = asyncio.wrap_future(spawn(work, given_up))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        given_up.set()
        end_s = time.monotonic() + PATIENCE_S
        while not running.done() and (left_s := end_s - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):  # cancelled twice
                await asyncio.wait({running}, timeout=left_s)
        if running.done():
            running.exception()  # looked at, so that asyncio does not tell of it: whoever cancelled does not want it
        else:
            running.cancel()
        raise
