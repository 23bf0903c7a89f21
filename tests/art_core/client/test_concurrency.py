"""`limit_concurrency`: who waits for whom."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from art.utils import limit_concurrency
from art_core.errors import ConfigError


class Peak:
    """A coroutine function that notes how many of it run at once, per key."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def call(self, key: str, fails: bool = False) -> str:
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        await asyncio.sleep(0)
        self.now[key] -= 1
        if fails:
            raise ValueError(key)
        return key


async def test_so_many_at_once() -> None:
    peak = Peak()

    @limit_concurrency(3)
    async def work(key: str) -> str:
        """What it does."""
        return await peak.call(key)

    assert await asyncio.gather(*(work("a") for _ in range(10))) == ["a"] * 10
    assert peak.most == {"a": 3}
    assert (work.__name__, work.__doc__) == ("work", "What it does.")


async def test_different_keys_don_t_wait_for_one_another() -> None:
    peak, meeting = Peak(), asyncio.Barrier(2)

    @limit_concurrency(1, derive_key=lambda key, **_: key)
    async def work(key: str, meets: bool = False) -> None:
        if meets:
            await meeting.wait()
        await peak.call(key)

    async with asyncio.timeout(60):
        await asyncio.gather(work("a", meets=True), work("b", meets=True), work("a"), work("b"))
    assert peak.most == {"a": 1, "b": 1}


async def test_one_that_fails_gives_its_turn_on() -> None:
    peak = Peak()
    work = limit_concurrency(1)(peak.call)
    results = await asyncio.gather(work("a", fails=True), work("a"), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, str]


def test_misuse_is_named() -> None:
    with pytest.raises(ConfigError, match="n is 0; allowed: 1 or more"):
        limit_concurrency(0)
    with pytest.raises(ConfigError, match="is no coroutine function"):
        limit_concurrency(1)(len)  # type: ignore[arg-type]
