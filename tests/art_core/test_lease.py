"""The lease of one writer, on a server whose every request takes a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest

from art_core import lease
from art_core.bucket import StoredObject
from art_core.testing.condition import LONGEST_S

REQUEST_S = 0.01


class SlowBucket:
    """The three calls that a lease makes. Proves nothing of a real server: none orders them as one event loop does."""

    def __init__(self) -> None:
        self._written: dict[str, float] = {}

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.sleep(REQUEST_S)
        self._written[key] = time.time()

    async def list(self, prefix: str) -> Sequence[StoredObject]:
        await asyncio.sleep(REQUEST_S)
        return [StoredObject(key, 0, written_s, "") for key, written_s in self._written.items()]

    async def delete(self, keys: Collection[str]) -> None:
        await asyncio.sleep(REQUEST_S if keys else 0)
        for key in keys:
            del self._written[key]


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
