"""The lease of one writer, on a server whose every request takes a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from art_core import lease
from art_core.bucket import StoredObject
from art_core.errors import StoreUnavailableError
from art_core.testing.condition import LONGEST_S, until

REQUEST_S = 0.01


class SlowBucket:
    """The three calls that a lease makes. Proves nothing of a real server: none orders them as one event loop does."""

    def __init__(self) -> None:
        self.written: dict[str, float] = {}

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.sleep(REQUEST_S)
        self.written[key] = time.time()

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        await asyncio.sleep(REQUEST_S)
        return [StoredObject(key, 0, written_s, "") for key, written_s in self.written.items()]

    async def delete(self, keys: Collection[str]) -> None:
        await asyncio.sleep(REQUEST_S if keys else 0)
        for key in keys:
            self.written.pop(key, None)


async def test_eight_get_it_one_after_another_though_a_request_takes_longer_than_the_first_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pauses that stay as short as the first one would have them meet until their time is over."""
    monkeypatch.setattr(lease, "_FIRST_PAUSE_S", REQUEST_S / 10)
    bucket, holders, most = SlowBucket(), 0, 0

    async def hold() -> None:
        nonlocal holders, most
        async with lease.lease(cast(Any, bucket), "lease/", LONGEST_S):
            holders += 1
            most = max(most, holders)
            await asyncio.sleep(REQUEST_S)
            holders -= 1

    await asyncio.gather(*(hold() for _ in range(8)))
    assert (most, holders) == (1, 0)
    assert not await bucket.list("lease/")


async def _until_both_ask(bucket: SlowBucket) -> list[asyncio.Task[None]]:
    async def hold() -> None:
        async with lease.lease(cast(Any, bucket), "lease/"):
            await asyncio.Event().wait()

    asking = [asyncio.create_task(hold()) for _ in range(2)]
    await until(lambda: len(bucket.written) == 2, "both have written a mark")
    return asking


async def test_who_is_cancelled_while_it_asks_leaves_no_mark() -> None:
    """One would keep others waiting for a minute."""
    bucket = SlowBucket()
    asking = await _until_both_ask(bucket)
    for each in asking:
        each.cancel()
    await asyncio.wait(asking)
    assert all(each.cancelled() for each in asking) and not bucket.written


async def test_who_is_cancelled_waits_for_no_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(keys: Collection[str]) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(lease, "PATIENCE_S", REQUEST_S)
    bucket = SlowBucket()
    asking = await _until_both_ask(bucket)
    monkeypatch.setattr(bucket, "delete", silent)
    for each in asking:
        each.cancel()
    await asyncio.wait(asking, timeout=LONGEST_S)
    assert all(each.cancelled() for each in asking)


async def test_a_bucket_that_fails_is_told_with_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = SlowBucket()
    monkeypatch.setattr(bucket, "list", AsyncMock(side_effect=StoreUnavailableError("can't list")))
    monkeypatch.setattr(bucket, "delete", AsyncMock(side_effect=StoreUnavailableError("can't delete")))
    with pytest.raises(StoreUnavailableError, match="can't list"):
        async with lease.lease(cast(Any, bucket), "lease/"):
            pytest.fail("nobody holds it")
