"""A program's way out of a blocking call: in order where that ends, at once where it does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from art_core import daemon
from art_core.daemon import GivenUpError, in_daemon, until
from art_core.testing.condition import LONGEST_S, TOLD_S, within


async def test_who_is_cancelled_be_it_twice_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "PATIENCE_S", LONGEST_S)
    begun, ended = threading.Event(), threading.Event()

    def endless() -> Iterator[int]:
        begun.set()
        while True:
            yield 1

    def work(given_up: threading.Event) -> int:
        try:
            return sum(until(given_up, endless()))
        finally:
            ended.set()

    call = asyncio.create_task(in_daemon(work))
    assert await asyncio.to_thread(begun.wait, LONGEST_S)
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_what_it_raises_is_raised() -> None:
    def work(given_up: threading.Event) -> int:
        given_up.set()
        return sum(until(given_up, [1]))

    with pytest.raises(GivenUpError):
        await in_daemon(work)


async def test_what_does_not_end_is_left_behind() -> None:
    begun, end = threading.Event(), threading.Event()
    call = asyncio.create_task(in_daemon(lambda _: begun.set() or end.wait()))
    assert await asyncio.to_thread(begun.wait, LONGEST_S)
    with within(TOLD_S, "a cancelled call ends"):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    end.set()


def test_a_program_ends_though_a_call_does_not() -> None:
    code = "from art_core.daemon import spawn; import threading; spawn(threading.Event().wait)"
    subprocess.run([sys.executable, "-c", code], timeout=LONGEST_S, check=True)
