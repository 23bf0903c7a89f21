"""Which public name stands for which adapter of SGLang's, who uses it, and when its slot is free again.

Every load gets a key of its own, under which SGLang knows it: a name that is unloaded and loaded anew is another
adapter to SGLang, whose own unload is not final (it would load a name again that a request asks for).

Unloading forgets the name at once. SGLang unloads by waiting for the adapter's requests while it holds the lock that
every load needs, so it is told only when no request is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from art_core.errors import EngineError, NoRouteError

_log = logging.getLogger("art.engine")


class Unloader(Protocol):
    """What the table asks of SGLang."""

    async def unload(self, key: str) -> None:
        """Forget an adapter that no request uses."""
        ...


@dataclass
class Adapter:
    """One adapter in SGLang."""

    name: str
    """Public."""
    key: str
    """SGLang's name for it."""
    directory: Path
    """The checkpoint's."""
    requests: int = 0
    """Under way."""


class AdapterTable:
    """The adapters of one engine. Lives on its event loop.

    Args:
        unloader: SGLang.
        base_name: Public name of the base model.
        slots: Adapters that fit.
    """

    def __init__(self, unloader: Unloader, base_name: str, slots: int) -> None:
        self.base_name = base_name
        self._unloader = unloader
        self._slots = slots
        self._served: dict[str, Adapter] = {}
        self._retired: dict[str, Adapter] = {}
        """By key: without a name, but in SGLang until their last request ends."""
        self._unloads: set[asyncio.Task[None]] = set()
        self._loads = 0
        self._base_requests = 0

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._base_requests + sum(each.requests for each in (*self._served.values(), *self._retired.values()))

    def adapters(self) -> dict[str, Adapter]:
        """By public name."""
        return dict(self._served)

    def reserve(self, name: str, directory: Path) -> Adapter:
        """The adapter that is about to be loaded; `add` it once it is.

        Raises:
            EngineError: The name is taken, or no slot is free.
        """
        if name == self.base_name or name in self._served:
            held = "the base model" if name == self.base_name else self._served[name].directory
            raise EngineError(f"adapter name {name!r} is taken, by {held}; unload it first", stage="load")
        if len(self._served) + len(self._retired) >= self._slots:
            raise EngineError(
                f"no slot is free for {name!r}: {self._slots} fit, {sorted(self._served)} are loaded and "
                f"{len(self._retired)} unloaded ones still answer requests; unload one, or start with more max_loras",
                stage="load",
            )
        self._loads += 1
        return Adapter(name, f"{name}#{self._loads}", directory)

    def add(self, adapter: Adapter) -> None:
        """From now on its name answers."""
        self._served[adapter.name] = adapter

    async def unload(self, name: str) -> None:
        """Forget a name, known or not; where no request uses it, its slot is free when this returns."""
        adapter = self._served.pop(name, None)
        if adapter is not None:
            self._retired[adapter.key] = adapter
            if not adapter.requests:
                await self._remove(adapter)

    @contextmanager
    def using(self, name: str) -> Iterator[str | None]:
        """Hold what a public name stands for while a request runs.

        Yields:
            SGLang's name of the adapter; None for the base model.

        Raises:
            NoRouteError: Nothing has that name.
        """
        if name == self.base_name:
            self._base_requests += 1
            try:
                yield None
            finally:
                self._base_requests -= 1
            return
        adapter = self._served.get(name)
        if adapter is None:
            raise NoRouteError(f"model {name!r} is not served; served: {', '.join([self.base_name, *self._served])}")
        adapter.requests += 1
        try:
            yield adapter.key
        finally:
            adapter.requests -= 1
            if not adapter.requests and adapter.key in self._retired:
                task = asyncio.get_running_loop().create_task(self._remove(adapter))
                self._unloads.add(task)
                task.add_done_callback(self._finished)

    async def _remove(self, adapter: Adapter) -> None:
        """Where SGLang refuses, the adapter stays counted: its slot is not free."""
        await self._unloader.unload(adapter.key)
        del self._retired[adapter.key]

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._unloads.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an unloaded adapter keeps its slot: %s", error)
