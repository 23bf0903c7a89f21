"""Processes that this one has started, and whether they are gone; and an owner that is killed to see that they die."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

import psutil


def descendants() -> dict[int, psutil.Process]:
    """Every process below this one, by id."""
    return {process.pid: process for process in psutil.Process().children(recursive=True)}


async def survivors(processes: Sequence[psutil.Process], timeout_s: float = 60.0) -> list[psutil.Process]:
    """Those that have not ended after the time-out."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout_s)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill with -9; with one process those that hang on it end by themselves, be it before they are reached."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


async def outlived(start: Callable[[], Awaitable[object]], timeout_s: float = 600.0) -> tuple[int, list[int]]:
    """Have another process make a call that starts processes, kill it with -9, and see what lives on.

    Args:
        start: Called in a fork of this process, in an event loop of its own.
        timeout_s: For the call.

    Returns:
        How many processes it had started, and the ids of those that outlived it.
    """
    here, there = multiprocessing.Pipe()
    owner = multiprocessing.get_context("fork").Process(target=_own, args=(there, start))
    owner.start()
    there.close()
    try:
        if not await asyncio.to_thread(here.poll, timeout_s):
            raise TimeoutError(f"the call took longer than {timeout_s:g} s")
        here.recv()
        started = psutil.Process(owner.pid).children(recursive=True)
    finally:
        os.kill(owner.ident or 0, signal.SIGKILL)
        await asyncio.to_thread(owner.join)
    left = await survivors(started)
    kill(left)
    return len(started), [process.pid for process in left]


def _own(parent: Connection, start: Callable[[], Awaitable[object]]) -> None:
    async def run() -> None:
        await start()
        parent.send(True)
        await asyncio.Event().wait()

    asyncio.run(run())
