"""How the gateway reaches the engine: the one that answers now, or why none does.

The gateway's thread asks; whoever sees the engine die or come back says so from another thread. Each of those is one
assignment, so a request sees the one or the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from art_core.config import Timeouts
from art_core.engine_connection import Connection, ConnectionPool, Origin
from art_core.errors import EngineUnavailableError
from art_core.protocols.engine import Endpoint

_LONGEST_RETRY_AFTER_S = 60
"""OpenAI's clients take a longer one for an error and come back at once."""


@dataclass(frozen=True)
class Outage:
    """The engine is down."""

    reason: str
    """For the people behind the requests."""
    back_at_s: float | None
    """When it is expected back, on the clock of `time.monotonic`; None: it does not come back by itself."""


@dataclass(frozen=True)
class _Engine:
    """One that answers."""

    origin: Origin
    path: str
    """Before every path."""
    headers: bytes

    @classmethod
    def at(cls, endpoint: Endpoint) -> Self:
        origin, path = Origin.of(endpoint.base_url)
        # identity: a chunk must leave the engine's socket as the text that the gateway marks
        headers = (
            f" HTTP/1.1\r\nhost: {origin.name}\r\nauthorization: Bearer {endpoint.api_key}\r\n"
            "accept-encoding: identity\r\ncontent-type: application/json\r\ncontent-length: "
        )
        return cls(origin, path, headers.encode())


class Answer:
    """An engine's answer, whose head has come; to be left as a context, its body taken or not."""

    def __init__(self, head: tuple[int, bytes], connection: Connection, pool: ConnectionPool, origin: Origin) -> None:
        self.status, self.content_type = head
        self._connection = connection
        self._pool = pool
        self._origin = origin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.give(self._origin, self._connection)

    def body(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            EngineUnavailableError: It broke off.
        """
        return self._connection.body()

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            EngineUnavailableError: It broke off.
        """
        return b"".join([data async for data in self._connection.body()])


class EngineClient:
    """Asks the engine that answers now.

    Args:
        endpoint: The started engine.
        timeouts: `connect_s` and `request_s` are used.
    """

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        # one pool for every engine there will be: connections to one that has died are broken, and go by themselves
        self._pool = ConnectionPool(timeouts.connect_s, timeouts.request_s)
        self._now: _Engine | Outage = _Engine.at(endpoint)
        self._start_s = 1.0

    def follow(self, endpoint: Endpoint, start_s: float) -> None:
        """Send requests there from now on.

        Args:
            endpoint: A started engine.
            start_s: How long it took to come up, seconds: what to tell clients should it die.
        """
        self._now, self._start_s = _Engine.at(endpoint), start_s

    def suspend(self, outage: Outage) -> None:
        """Refuse requests from now on."""
        self._now = outage

    async def send(self, method: str, path: str, content: bytes = b"") -> Answer:
        """Ask the engine; when this returns, the answer's body is yet to be read.

        Raises:
            EngineUnavailableError: There is no engine now, or it could not be reached, or broke off.
        """
        now = self._now
        if isinstance(now, Outage):
            raise EngineUnavailableError(now.reason)
        asked = b"%s %s%s%d\r\n\r\n" % (method.encode(), (now.path + path).encode(), now.headers, len(content))
        while True:
            connection = await self._pool.take(now.origin)
            try:
                connection.request(asked, content)
                return Answer(await connection.head(), connection, self._pool, now.origin)
            except EngineUnavailableError:
                # a busy engine drops an idle connection late, with our request unread on it: not the request's fault
                if not connection.dropped:
                    connection.close()
                    raise
            except BaseException:
                connection.close()
                raise

    def retry_after_s(self) -> int | None:
        """What to tell a client whose request the engine did not answer; None: it need not ask again.

        Clients ask again two or three times only, so they are told to come when the engine is likely to be back, or,
        where that is soon or overdue, after another start's time.
        """
        now, left_s = self._now, self._start_s
        if isinstance(now, Outage):
            if now.back_at_s is None:
                return None
            left_s = now.back_at_s - time.monotonic()
            left_s = left_s if left_s > self._start_s / 2 else self._start_s
        return min(max(math.ceil(left_s), 1), _LONGEST_RETRY_AFTER_S)

    def close(self) -> None:
        """Close every connection. On the event loop that asks."""
        self._pool.close()
