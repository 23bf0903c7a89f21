"""What the gateway is told of an engine that is down or drops connections; the rest is tested with the gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from art_core import engine_client
from art_core.base_model import ModelInfo
from art_core.config import Timeouts
from art_core.engine_client import EngineClient, Outage
from art_core.errors import EngineUnavailableError
from art_core.protocols.engine import Endpoint
from art_core.testing.condition import LONGEST_S
from tests.staged import BASE

ENDPOINT = Endpoint("http://127.0.0.1:9", "key", ModelInfo(BASE, 1, 1, None, "none"), 2)


async def client(start_s: float) -> EngineClient:
    made = EngineClient(ENDPOINT, Timeouts())
    made.follow(ENDPOINT, start_s)
    return made


@pytest.mark.parametrize(("start_s", "told"), [(0.2, 1), (7.2, 8), (600, 60)])
async def test_a_request_that_was_cut_comes_back_after_a_start(start_s: float, told: int) -> None:
    made = await client(start_s)
    assert made.retry_after_s() == told


@pytest.mark.parametrize(("left_s", "told"), [(8, 8), (5.5, 6), (4, 8), (0, 8), (-100, 8), (500, 60)])
async def test_a_request_during_an_outage_comes_back_at_its_end(
    left_s: float, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after another start's time: one that lasts longer than the last must not use up a client's few tries."""
    monkeypatch.setattr(engine_client, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    made = await client(8)
    made.suspend(Outage("dead", 1000.0 + left_s))
    assert made.retry_after_s() == told
    with pytest.raises(EngineUnavailableError, match=r"^dead$"):
        await made.send("GET", "/health")


async def test_an_outage_for_good_names_no_time() -> None:
    made = await client(8)
    made.suspend(Outage("gone", None))
    assert made.retry_after_s() is None
    made.follow(ENDPOINT, 3)
    assert made.retry_after_s() == 3


async def test_a_kept_connection_that_the_engine_dropped_is_not_the_requests_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request on it is sent again on a new one; a new connection that is dropped at once is an error."""
    monkeypatch.setattr("art_core.engine_connection._IDLE_S", LONGEST_S)
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(0)
        number = len(seen) - 1
        while await reader.readuntil(b"\r\n\r\n"):
            seen[number] += 1
            if seen[number] > 1 or number == 2:
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        made = EngineClient(replace(ENDPOINT, base_url=url), Timeouts())
        for _ in range(2):
            with await made.send("GET", "/") as answer:
                assert await answer.read() == b"ok"
        assert seen == [2, 1]
        with pytest.raises(EngineUnavailableError, match="it closed the connection"):
            await made.send("GET", "/")
        assert seen == [2, 2, 1]
        made.close()
