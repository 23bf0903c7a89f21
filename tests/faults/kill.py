"""kill -9, or a refusal of the system's, at the n-th call that changes something; the harness of these tests.

A victim is forked from the warm process that runs the test, wraps the calls that are to be struck, and kills itself
with SIGKILL just before or just after the n-th of them. A kill keeps what the kernel already has: what a power failure
would keep is proved by the order of the forced writes, in ``test_local_store.py`` and ``test_file_store.py``.

The calls are given as pairs of an owner and a name, so another store is struck at its own: ``(client, "put_object")``.
An `async` function counts as one call that ends when it has been awaited.

A fork copies the memory of its parent and none of its threads: a warm process must not hold a lock, or a pool of
threads that the victim needs, when it forks. What a fresh interpreter does on its way up is not covered here.
"""

from __future__ import annotations

import inspect
import itertools
import os
import select
import shutil
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from art_core.testing.condition import LONGEST_S

Call = tuple[Any, str]
"""What owns a function, a module or an object, and the function's name."""

DISK: Sequence[Call] = tuple(
    (os, name)
    for name in ("open", "write", "fsync", "rename", "mkdir", "ftruncate", "truncate", "link", "unlink", "rmdir")
)
"""Every function of `os` by which the product changes a file."""


@contextmanager
def hooked(act: Callable[[str, object, bool], None], calls: Sequence[Call] = DISK) -> Iterator[None]:
    """Call `act(name, first argument, after)` before and after every call."""
    real = {(owner, name): getattr(owner, name) for owner, name in calls}
    for (owner, name), function in real.items():
        setattr(owner, name, _wrapped(name, function, act))
    try:
        yield
    finally:
        for (owner, name), function in real.items():
            setattr(owner, name, function)


def _wrapped(name: str, function: Callable[..., Any], act: Callable[[str, object, bool], None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        act(name, first, False)
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            return ended(result, first)
        act(name, first, True)
        return result

    async def ended(result: Awaitable[Any], first: object) -> Any:
        value = await result
        act(name, first, True)
        return value

    return call


def in_fork(work: Callable[[], object]) -> int:
    """Do the work in a fork of this process; returns its process id. It ends with 0, or with 1 and a traceback."""
    victim = os.fork()
    if victim == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return victim


def end_of(victim: int) -> int:
    """Wait for a fork's end; its status, as `os.waitpid` gives it. One that hangs is killed and fails the test."""
    fd = os.pidfd_open(victim)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = poll.poll(LONGEST_S * 1000)
    finally:
        os.close(fd)
    if not ended:
        os.kill(victim, signal.SIGKILL)
    _, status = os.waitpid(victim, 0)
    assert ended, f"a victim goes on after {LONGEST_S:g} s"
    return status


def was_killed(victim: int) -> bool:
    """Wait for a fork's end: whether SIGKILL ended it. One that failed by itself fails the test."""
    status = end_of(victim)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the victim failed by itself"
    return False


def killed_at(point: int, work: Callable[[], object], calls: Sequence[Call] = DISK) -> bool:
    """Do the work in a fork that kills itself at that point; whether it came so far."""
    counter, guard = itertools.count(), threading.Lock()

    def act(name: str, what: object, after: bool) -> None:
        with guard:
            if next(counter) == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def struck() -> None:
        with hooked(act, calls):
            work()

    return was_killed(in_fork(struck))


def every_kill(
    make: Callable[[], Path],
    work: Callable[[Path], object],
    check: Callable[[Path], None],
    calls: Sequence[Call] = DISK,
) -> int:
    """Kill at every point in turn, each time on what `make` gives, and `check` what is left; the number of kills."""
    for point in itertools.count():
        path = make()
        if not killed_at(point, lambda path=path: work(path), calls):
            return point
        check(path)
        shutil.rmtree(path)
    raise AssertionError


@contextmanager
def refusing(point: int, number: int, calls: Sequence[Call] = DISK) -> Iterator[list[str]]:
    """Let the n-th call fail with that error number; yields the name of the call that did."""
    counter, failed, guard = itertools.count(), list[str](), threading.Lock()

    def act(name: str, what: object, after: bool) -> None:
        if after:
            return
        with guard:
            hit = next(counter) == point
        if hit:
            failed.append(name)
            if isinstance(what, int):  # a descriptor: the system names no file either
                raise OSError(number, os.strerror(number))
            raise OSError(number, os.strerror(number), str(what))

    with hooked(act, calls):
        yield failed


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise where the block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"{what} after {seconds:g} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def reap() -> None:
    """Wait for every process below this one."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return
