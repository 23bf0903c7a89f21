"""Chat streams that never stop on a server, and the tokens a second that they get."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx

STREAMS = 8


class Streams:
    """Streams under way.

    Args:
        http: To a server.
        name: What they ask.
    """

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self.tokens = 0
        self._waiting, self._under_way = set(range(STREAMS)), asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._run(http, name, number)) for number in range(STREAMS)]

    async def _run(self, http: httpx.AsyncClient, name: str, number: int) -> None:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": f"Tell me story number {number}."}],
            "max_tokens": 1024,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        while True:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                rest = b""
                async for part in response.aiter_bytes():
                    *events, rest = (rest + part).split(b"\n")
                    for event in events:
                        if event.startswith(b"data: {"):
                            choices = json.loads(event[6:])["choices"]
                            self._count(number, sum(len(each.get("token_ids") or ()) for each in choices))

    def _count(self, number: int, tokens: int) -> None:
        self.tokens += tokens
        if tokens:
            self._waiting.discard(number)
        if not self._waiting:
            self._under_way.set()

    async def under_way(self) -> None:
        """Wait until each of them has got a token."""
        begun = asyncio.ensure_future(self._under_way.wait())
        await asyncio.wait([begun, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        self._raise()

    async def rate(self, seconds: float, meanwhile: Callable[[], Awaitable[None]] | None, every_s: float) -> float:
        """Tokens a second in a window, with a call every few seconds or without."""
        start, before = time.perf_counter(), self.tokens
        next_s = every_s / 2
        while meanwhile is not None and next_s < seconds:
            await asyncio.sleep(max(0.0, start + next_s - time.perf_counter()))
            await meanwhile()
            next_s += every_s
        await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
        self._raise()
        return (self.tokens - before) / (time.perf_counter() - start)

    async def stop(self) -> None:
        """Cut them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


@dataclass(frozen=True)
class Windows:
    """How long the windows are, and how often something happens in them."""

    seconds: float
    every_s: float

    async def pair(
        self, http: httpx.AsyncClient, name: str, meanwhile: Callable[[], Awaitable[None]], *, calm_first: bool
    ) -> Mapping[bool, float]:
        """Two windows of the same streams, once all are under way.

        Args:
            http: To a server.
            name: What they ask.
            meanwhile: What happens in one of them.
            calm_first: Whether the other comes first.

        Returns:
            Tokens a second in the one where it happens (True), and in the other.
        """
        streams = Streams(http, name)
        try:
            await streams.under_way()
            order = (False, True) if calm_first else (True, False)
            return {busy: await streams.rate(self.seconds, meanwhile if busy else None, self.every_s) for busy in order}
        finally:
            await streams.stop()
