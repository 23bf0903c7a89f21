"""An engine's server as its plugin sees it: launched, an address, a key and, where it is ours, a process that may die.

The plugin decides what to launch and what to ask; this room asks, and turns a broken connection into the contract's
errors: `EngineDiedError` once the process has ended, `EngineUnavailableError` while nobody knows.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from art_core.config import Timeouts
from art_core.errors import EngineDiedError, EngineStartError, EngineUnavailableError
from art_core.process import Child, ProcessError


def listen() -> socket.socket:
    """A listening socket on a free loopback port, to be handed over open, so that no one else can take the port."""
    return socket.create_server(("127.0.0.1", 0), backlog=2048)


async def launch_server(
    name: str,
    argv: Sequence[str],
    settings: Mapping[str, Any],
    log_path: Path,
    variables: Mapping[str, str],
    private: Path | None = None,
) -> tuple[Child, str]:
    """Launch a server on a port of its own.

    Args:
        name: The engine's, for messages.
        argv: Its command. Two descriptors are added to it: the listening socket, and a file with `settings`.
        settings: As JSON carries them; a key among them shows neither in the process table nor on disk.
        log_path: Where its output goes.
        variables: Added to the inherited environment.
        private: A directory that the server makes for itself; see `Child.launch`.

    Returns:
        Its process, and where it will answer.

    Raises:
        EngineStartError: The command can't be started.
    """
    with listen() as listener, tempfile.TemporaryFile() as file:
        file.write(json.dumps(settings).encode())
        file.seek(0)
        fds = (listener.fileno(), file.fileno())
        try:
            child = await Child.launch(
                [*argv, *map(str, fds)], log_path=log_path, env=variables, pass_fds=fds, private=private
            )
        except ProcessError as error:
            raise EngineStartError(f"engine {name!r}: {error}", stage="start") from error
        return child, f"http://127.0.0.1:{listener.getsockname()[1]}"


class EngineServer:
    """A running engine server.

    Args:
        name: The engine's name, for messages.
        base_url: Where it answers, without ``/v1``.
        headers: Sent with every request: its key.
        child: Its process; None for a server that somebody else runs.
        timeouts: `connect_s` and `engine_stop_s` are used.
    """

    def __init__(
        self, name: str, base_url: str, headers: Mapping[str, str], child: Child | None, timeouts: Timeouts
    ) -> None:
        self.base_url = base_url
        self.child = child
        self._name = name
        self._headers = headers
        self._timeouts = timeouts
        self._session: httpx.AsyncClient | None = None
        """Whose connections to use; None: a new one for each call."""

    async def ask(self, method: str, path: str, json: object, timeout_s: float) -> httpx.Response:
        """Make one request; what the answer's status means is the caller's to say.

        Args:
            method: HTTP method.
            path: From the root, e.g. ``/health``.
            json: The body; None: none.
            timeout_s: For the whole answer, seconds.

        Raises:
            EngineDiedError: The process has ended.
            EngineUnavailableError: No answer in time, or no connection.
        """
        if self._session is None:
            async with self.connected() as server:
                return await server.ask(method, path, json, timeout_s)
        timeout = httpx.Timeout(timeout_s, connect=self._timeouts.connect_s)
        try:
            return await self._session.request(method, path, json=json, timeout=timeout)
        except httpx.TimeoutException as error:
            raise EngineUnavailableError(
                f"engine {self._name!r} did not answer {path} within {timeout_s:g} s"
            ) from error
        except httpx.TransportError as error:
            raise await self._unavailable(error) from error

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Self]:
        """The same server over connections that are kept until the block ends, for the calls of one block.

        A connection per call costs a millisecond and makes any event loop of the caller do; there is no TLS to verify.
        """
        async with httpx.AsyncClient(
            base_url=self.base_url, headers=self._headers, trust_env=False, verify=False
        ) as session:
            server = copy.copy(self)
            server._session = session
            yield server

    async def stop(self) -> None:
        """End the process and all that it started, where it is ours; idempotent."""
        if self.child is not None:
            await self.child.stop(self._timeouts.engine_stop_s)

    async def _unavailable(self, error: httpx.TransportError) -> EngineUnavailableError:
        """Says how the process ended; a connection breaks a moment before the process is known to be dead."""
        if self.child is None:
            return EngineUnavailableError(f"engine {self._name!r} at {self.base_url} can't be reached: {error!r}")
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                return EngineDiedError(f"engine {self._name!r} is gone: {self.child.died(await self.child.exited())}")
        except TimeoutError:
            return EngineUnavailableError(f"engine {self._name!r} can't be reached: {error!r}; {self.child.log_tail()}")
