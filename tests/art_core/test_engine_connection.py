"""HTTP to an engine, byte by byte: a server on a real socket that answers by script."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from art_core.engine_connection import _HIGH_BYTES, Connection, ConnectionPool, Origin
from art_core.errors import EngineUnavailableError
from art_core.testing.condition import until

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Origin, list[object]]]:
    """A server whose connections run the script one after another; the list has one entry per connection."""
    seen: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client has gone, as some tests want
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        origin, path = Origin.of(f"http://127.0.0.1:{port}/x/")
        assert path == "/x"
        yield origin, seen


async def ask(pool: ConnectionPool, origin: Origin, body: bytes = b"") -> tuple[Connection, bytes]:
    connection = await pool.take(origin)
    connection.request(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    await connection.head()
    return connection, b"".join([data async for data in connection.body()])


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.rsplit(b":", 1)[1]))


def answering(answer: bytes, *, bytewise: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            for piece in [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]:
                writer.write(piece)
                await writer.drain()
                if bytewise:
                    await asyncio.sleep(0)

    return script


POOL_S = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that waits is kept however long a test pauses."""
    monkeypatch.setattr("art_core.engine_connection._IDLE_S", POOL_S)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "kind", "body"),
    [
        (CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200, b"text/event-stream", b"abcde"),
        (WHOLE, 200, b"application/json", b"abc"),
        (b"HTTP/1.1 503 No\r\nCONTENT-TYPE: a/b\r\ncontent-length: 0\r\n\r\n", 503, b"a/b", b""),
    ],
)
async def test_answers_are_read_however_they_come_and_the_connection_is_kept(
    answer: bytes, status: int, kind: bytes, body: bytes, bytewise: bool
) -> None:
    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(answering(answer, bytewise=bytewise)) as (origin, connections):
        for _ in range(3):
            connection, got = await ask(pool, origin, b"x" * 5)
            assert (*await connection.head(), got) == (status, kind, body)
            assert connection.reusable
            pool.give(origin, connection)
        assert len(connections) == 1
        pool.close()
        assert connection.closed


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc")


async def unframed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\nab")
    await writer.drain()
    writer.write(b"c")


@pytest.mark.parametrize("script", [closing, unframed])
async def test_a_connection_that_the_engine_does_not_keep_is_not_kept(script: Script) -> None:
    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(script) as (origin, connections):
        for _ in range(2):
            connection, got = await ask(pool, origin)
            assert got == b"abc" and not connection.reusable
            pool.give(origin, connection)
            assert connection.closed
        assert len(connections) == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "it closed the connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "it closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "what it sent is no HTTP"),
    ],
)
async def test_an_answer_that_does_not_come(answer: bytes, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)

    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(script) as (origin, _):
        connection = await pool.take(origin)
        connection.request(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
        with (
            caplog.at_level(logging.WARNING, "art.gateway"),
            pytest.raises(EngineUnavailableError, match=rf"does not answer \({why}.*try again"),
        ):
            await connection.head()
        assert connection.closed and why in caplog.text
        pool.give(origin, connection)


@pytest.mark.parametrize("rest", [b"5\r\nab", b"zz\r\n"])
async def test_what_came_of_a_body_that_breaks_off_is_handed_on_first(rest: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"3\r\nabc\r\n" + rest)

    pool, got = ConnectionPool(POOL_S, POOL_S), b""
    async with serving(script) as (origin, _):
        connection = await pool.take(origin)
        connection.request(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
        await connection.head()
        with pytest.raises(EngineUnavailableError):
            async for data in connection.body():
                got += data
    assert got.startswith(b"abc")


async def test_silence_is_given_up_and_a_slow_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still but for what the engine's script says."""
    loop, now_s, came, given_up = asyncio.get_running_loop(), [0.0], asyncio.Event(), asyncio.Event()
    now_s[0] = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now_s[0])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED)
        for _ in range(4):
            now_s[0] += 0.3
            writer.write(b"1\r\na\r\n")
            await came.wait()
            came.clear()
        now_s[0] += 0.5
        await given_up.wait()

    pool, got = ConnectionPool(POOL_S, 0.4), b""
    async with serving(script) as (origin, _):
        connection = await pool.take(origin)
        connection.request(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
        await connection.head()
        with pytest.raises(EngineUnavailableError, match=r"nothing came for 0\.4 s"):
            async for data in connection.body():
                got += data
                came.set()
        given_up.set()
    assert got == b"aaaa"


async def test_a_body_that_is_not_taken_holds_the_engine_back() -> None:
    sent, size = 0, 1 << 16

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(CHUNKED)
        for _ in range(1000):
            writer.write(b"%x\r\n" % size + b"x" * size + b"\r\n")
            sent += size
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(script) as (origin, _):
        connection = await pool.take(origin)
        connection.request(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
        await connection.head()
        before = -1
        while sent != before:  # it goes on until every buffer on the way is full
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 32 << 20
        assert sum([len(data) async for data in connection.body()]) == 1000 * size
        assert connection.reusable
        pool.give(origin, connection)
        pool.close()


@pytest.mark.parametrize("more", [0, 1])
async def test_a_connection_on_which_reading_stopped_is_not_kept(more: int) -> None:
    """It stops beyond a limit: here with the last byte of a body that nobody takes."""
    size, pool = _HIGH_BYTES + more, ConnectionPool(POOL_S, POOL_S)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    async with serving(answering(answer)) as (origin, _):
        connection = await pool.take(origin)
        connection.request(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
        await until(lambda: connection._answer.whole, "the answer is here")
        assert connection.reusable is (more == 0)
        pool.give(origin, connection)
        assert len((await ask(pool, origin))[1]) == size


async def test_an_engine_that_closed_a_kept_connection_is_asked_over_a_new_one() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(WHOLE)

    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(script) as (origin, connections):
        connection, _ = await ask(pool, origin)
        pool.give(origin, connection)
        await until(lambda: connection.closed, "the kept connection is closed")
        assert (await ask(pool, origin))[1] == b"abc"
        assert len(connections) == 2


async def test_connections_of_another_engine_and_old_ones_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ConnectionPool(POOL_S, POOL_S)
    async with serving(answering(WHOLE)) as (first, at_first), serving(answering(WHOLE)) as (second, at_second):
        kept, _ = await ask(pool, first)
        pool.give(first, kept)
        other, _ = await ask(pool, second)
        assert other is not kept
        pool.give(second, other)
        again, _ = await ask(pool, first)
        assert again is kept
        monkeypatch.setattr("art_core.engine_connection._IDLE_S", 0.0)
        pool.give(first, again)
        newest, _ = await ask(pool, first)
        assert newest is not kept and kept.closed and other.closed
        assert (len(at_first), len(at_second)) == (2, 1)
        newest.close()


async def test_an_address_that_nobody_listens_at() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else can listen there meanwhile
        origin, _ = Origin.of(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EngineUnavailableError, match="ConnectionRefusedError"):
            await ConnectionPool(POOL_S, POOL_S).take(origin)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:80", Origin("127.0.0.1:80", "127.0.0.1", 80, False)),
        ("https://engine.example", Origin("engine.example", "engine.example", 443, True)),
        ("http://[::1]:5", Origin("[::1]:5", "::1", 5, False)),
    ],
)
def test_addresses(url: str, origin: Origin) -> None:
    assert Origin.of(url) == (origin, "")
