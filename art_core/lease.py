"""One writer at a time where a server can't decide for us: a lease that everybody can see.

Each who wants it writes a mark of its own, then looks whether there are others: then at most one goes on, because of
two marks the later one's owner sees the earlier. Who sees another takes its own away and tries again after a random
while, each time a longer one: where a request takes long, those who come back too soon would meet for ever. The mark
of one that was killed counts for a minute, by the server's clock.

What it does not guarantee: a holder that stands still for more than that minute and then goes on is not noticed. That
is why a store that relies on it declares nothing, and why a run belongs on one machine there.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from art_core.bucket import Bucket
from art_core.daemon import PATIENCE_S
from art_core.errors import StoreError, StoreUnavailableError

LIFE_S = 60.0

_WAIT_S = 2 * LIFE_S
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 5.0


@asynccontextmanager
async def lease(bucket: Bucket, prefix: str, wait_s: float = _WAIT_S) -> AsyncIterator[None]:
    """Hold the lease for the block, which must take far less than a minute.

    Args:
        bucket: Where the marks stand.
        prefix: What their keys begin with.
        wait_s: Longest wait for others.

    Raises:
        StoreUnavailableError: Others held it all the while, or the bucket does not answer.
    """
    key = f"{prefix}{uuid.uuid4().hex}"
    try:
        await _wait(bucket, prefix, key, wait_s)
        yield
    except BaseException:
        with suppress(StoreError, TimeoutError):  # what came first is told
            async with asyncio.timeout(PATIENCE_S):  # the server may be silent
                await bucket.delete([key])  # or it would keep others waiting for a minute
        raise
    await bucket.delete([key])


async def _wait(bucket: Bucket, prefix: str, key: str, wait_s: float) -> None:
    pause_s = _FIRST_PAUSE_S
    try:
        async with asyncio.timeout(wait_s):
            while not await _alone(bucket, prefix, key):
                await bucket.delete([key])
                await asyncio.sleep(random.uniform(0, pause_s))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    except TimeoutError as error:
        raise StoreUnavailableError(f"others held the lease below {prefix!r} for {wait_s:g} s; try again") from error


async def _alone(bucket: Bucket, prefix: str, key: str) -> bool:
    await bucket.put(key, b"")
    marks = {each.key: each.modified_s for each in await bucket.list(prefix)}
    mine_s = marks.pop(key, None)
    if mine_s is None:
        return False
    dead = [other for other, modified_s in marks.items() if modified_s < mine_s - LIFE_S]
    await bucket.delete(dead)
    return len(dead) == len(marks)
