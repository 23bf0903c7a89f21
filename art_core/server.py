"""An ASGI application on a loopback port of its own, in a daemon thread with its own event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from art_core.errors import RunError

_GRACE_S = 1
"""At close, how long requests under way may go on."""
_JOIN_S = 10.0
_KEEP_ALIVE_S = 75
"""Above the 5 s after which clients drop an idle connection, so that none is closed under a request being sent."""

_log = logging.getLogger("art.server")


class _Server(uvicorn.Server):
    """Says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        self.settled.set()


class ServerThread:
    """Serves an application until closed.

    The socket is bound here, to 127.0.0.1 and a free port, so that no other process can take the port in between.

    Args:
        app: The application, with its lifespan.
        name: The thread's name.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._server = _Server(config)
        # the protocol is named, or asyncio does not set TCP_NODELAY and every small answer waits 40 ms for an ACK
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(2048)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, timeout_s: float) -> None:
        """Start the thread; when this returns the application has started and the port answers.

        Args:
            timeout_s: Longest wait, seconds.

        Raises:
            RunError: The application did not start; its traceback is in the log.
        """
        self._thread.start()
        self._server.settled.wait(timeout_s)
        if not self._server.started:
            self.close()
            raise RunError(f"{self._thread.name} did not start within {timeout_s:g} s; see the log of 'uvicorn.error'")

    def call(self, function: Callable[[], None]) -> None:
        """Run a function on the server's event loop, soon.

        Args:
            function: Must not block.
        """
        self._server.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Stop: no new connection, requests under way are cancelled after a second; idempotent."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        self._socket.close()
        if self._thread.is_alive():
            _log.error("%s did not stop within %g s", self._thread.name, _JOIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except SystemExit:  # how uvicorn ends when the application does not start; it has logged why
            _log.error("%s ended before it served", self._thread.name)
        finally:
            self._server.settled.set()
