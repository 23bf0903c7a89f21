"""HTTP/1.1 to an engine, over connections that are kept: nothing but what the gateway asks.

A body is handed on as it comes off the socket, and all that lies there at once: under load many of an engine's events
cost one pass through the event loop. What is slow to be taken is not read: the engine's writes then wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import httptools

from art_core.errors import EngineUnavailableError

_log = logging.getLogger("art.gateway")

_IDLE_S = 4.0
"""Engines drop idle connections after 5 s at the earliest; ours go first, so that none breaks under a request."""
_HIGH_BYTES = 1 << 18
"""More than this of a body that waits to be taken: no further reading."""


@dataclass(frozen=True)
class Origin:
    """Where an engine listens."""

    name: str
    """As the header ``host`` says it."""
    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, base_url: str) -> tuple[Self, str]:
        """That of an address like ``http://127.0.0.1:41234``, and the path that it begins with."""
        url = urlsplit(base_url)
        tls = url.scheme == "https"
        name = url.netloc.rpartition("@")[2]
        return cls(name, url.hostname or "", url.port or (443 if tls else 80), tls), url.path.rstrip("/")


class _Answer:
    """One answer, as the parser finds it."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b"application/json"
        self.headed = self.whole = self.kept = False
        """Whether its head has come, whether all has, and whether the connection stays."""
        self.framed = False
        """Whether its head says where it ends; else it ends with the connection."""
        self.parts: list[bytes] = []
        """Of the body, those that wait to be taken."""
        self.waiting_bytes = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        name = name.lower()
        if name == b"content-type":
            self.content_type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.status = self.parser.get_status_code()
        self.headed = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self.parts.append(data)
        self.waiting_bytes += len(data)

    def on_message_complete(self) -> None:
        """All has come; only now can the parser tell whether the connection stays."""
        self.whole = True
        self.kept = self.framed and self.parser.should_keep_alive()

    def take(self) -> bytes:
        """What of the body waits."""
        data = b"".join(self.parts)
        self.parts.clear()
        self.waiting_bytes = 0
        return data


class Connection(asyncio.Protocol):
    """One connection: one request at a time, whose answer is read from here.

    Args:
        silence_s: Longest wait for the next bytes, seconds.
    """

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._answer = _Answer()
        self._error: EngineUnavailableError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._heard = False
        self._requests = 0
        self.dropped = False
        """Whether the other end closed it, kept from an earlier answer, before a byte of this one came."""

    def request(self, head: bytes, body: bytes) -> None:
        """Send a request, on a connection that is new or whose last answer is whole.

        Raises:
            EngineUnavailableError: The engine has closed the connection.
        """
        if self.closed:
            raise _unavailable("it closed the connection")
        self._answer = _Answer()
        self._requests += 1
        self._heard = False
        self._heard_at = self._loop.time()
        self._watch = self._loop.call_later(self._silence_s, self._check_silence)
        self._transport.write(head + body)

    async def head(self) -> tuple[int, bytes]:
        """The answer's status and content type, once they have come.

        Raises:
            EngineUnavailableError: They did not come.
        """
        while not self._answer.headed:
            await self._change()
        return self._answer.status, self._answer.content_type

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body, in whatever pieces it comes.

        Raises:
            EngineUnavailableError: It broke off.
        """
        answer = self._answer
        while True:
            if answer.parts:
                if answer.waiting_bytes > _HIGH_BYTES:
                    self._transport.resume_reading()
                yield answer.take()
            elif answer.whole:
                return
            else:
                await self._change()

    @property
    def reusable(self) -> bool:
        """Whether another request can be sent: the answer is whole, and both ends keep the connection and read on."""
        return self._answer.kept and self._answer.waiting_bytes <= _HIGH_BYTES and not self.closed

    @property
    def closed(self) -> bool:
        """Whether either end has closed it."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End it at once; an engine takes that as a client that went away."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        self._heard, self._heard_at = True, self._loop.time()
        answer = self._answer
        try:
            answer.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"what it sent is no HTTP: {error}")
        if answer.waiting_bytes > _HIGH_BYTES:
            self._transport.pause_reading()
        if answer.whole and self._watch is not None:
            self._watch.cancel()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """As asyncio calls it."""
        if self._watch is not None:
            self._watch.cancel()
        if self._answer.headed and not self._answer.framed and error is None:
            self._answer.whole = True
        self.dropped = self._requests > 1 and not self._heard and self._error is None
        self._fail(repr(error) if error else "it closed the connection")

    async def _change(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        if self._error is None and not self._answer.whole:
            self._error = _unavailable(why)
        self._transport.abort()
        self._wake()

    def _check_silence(self) -> None:
        left_s = self._heard_at + self._silence_s - self._loop.time()
        if left_s <= 0 and not self._answer.waiting_bytes:
            self._fail(f"nothing came for {self._silence_s:g} s")
        else:  # that we take nothing is no silence of theirs
            self._watch = self._loop.call_later(left_s if left_s > 0 else self._silence_s, self._check_silence)


class ConnectionPool:
    """Connections that wait for the next request. Used on one event loop.

    Args:
        connect_s: Longest wait for a connection, seconds.
        silence_s: Longest wait for an answer's next bytes, seconds.
    """

    def __init__(self, connect_s: float, silence_s: float) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._idle: deque[tuple[float, Origin, Connection]] = deque()

    async def take(self, origin: Origin) -> Connection:
        """A connection to that address, kept or new.

        Raises:
            EngineUnavailableError: None can be made.
        """
        self._drop_until(time.monotonic() - _IDLE_S)
        for index in reversed(range(len(self._idle))):
            _, where, connection = self._idle[index]
            if where == origin:
                del self._idle[index]
                if not connection.closed:
                    return connection
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._silence_s), origin.host, origin.port, ssl=origin.tls or None
                )
        except (OSError, TimeoutError) as error:
            why = f"no connection within {self._connect_s:g} s" if isinstance(error, TimeoutError) else repr(error)
            raise _unavailable(why) from error
        return connection

    def give(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection for the next request, or close it where it can take none."""
        if connection.reusable:
            self._idle.append((time.monotonic(), origin, connection))
        else:
            connection.close()

    def close(self) -> None:
        """Close every connection that waits."""
        self._drop_until(float("inf"))

    def _drop_until(self, since: float) -> None:
        while self._idle and self._idle[0][0] < since:
            self._idle.popleft()[2].close()


def _unavailable(why: str) -> EngineUnavailableError:
    _log.warning("the engine does not answer: %s", why)
    return EngineUnavailableError(f"the engine does not answer ({why}); try again")
