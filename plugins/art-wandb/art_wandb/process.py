"""W&B's SDK in a process of its own: one for all that this process does with W&B.

The SDK starts a background service, holds global state (``wandb.run``) that belongs to the user's own program, and
waits for servers in ways that can't be bounded from outside. So it lives in a child (`art_wandb.child`), is launched by
the first call, dies with this process, and ends by itself, its service with it, after a minute without work. It knows
W&B's settings and key as they were when it was launched, so one that was refused ends, and so does one whose variables
were changed here since; the next call launches another. Requests and answers are lines of JSON on a socket pair; any
thread and any event loop may call.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from art_core.daemon import PATIENCE_S, in_daemon
from art_core.disk import remove_directory
from art_core.errors import StoreError, StoreUnavailableError, from_wire
from art_core.process import Child, close_in_forks, close_private, kill_group

IDLE_S = 60.0
"""Without a call and without an observed run for so long, the process ends by itself."""

_SERVICE = "WANDB_SERVICE"
"""Leads to a background service that runs already: to that of the user's own program, which is none of ours."""

_STOP_S = 30.0
"""From the end of the work until what is still to be sent is given up."""


class WandbProcess:
    """Calls into the process, which is launched when it is needed. Made once, `WANDB`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    async def call(self, method: str, timeout_s: float, data: Mapping[str, Any]) -> Any:
        """Make a call from a coroutine; one that is cancelled may go on for as long as the process does.

        Args:
            method: Of `art_wandb.desk.Desk`.
            timeout_s: After that the process is killed.
            data: The method's arguments, as JSON carries them.

        Raises:
            StoreUnavailableError: W&B can't be reached right now, or did not answer in time.
            StoreError: It refuses.
        """
        return await in_daemon(lambda given_up: self.call_here(method, timeout_s, data, given_up))

    def call_here(
        self, method: str, timeout_s: float, data: Mapping[str, Any], given_up: threading.Event | None = None
    ) -> Any:
        """The same, in this thread, which has no event loop that runs.

        Args:
            method: As above.
            timeout_s: As above.
            data: As above.
            given_up: Set once nobody wants the answer any more.
        """
        for last in (False, True):
            connection = self._connected()
            try:
                return connection.call(method, timeout_s, data, given_up or threading.Event())
            except _IdleError as error:  # it was about to end, for want of work
                if last:
                    raise StoreUnavailableError(f"the W&B process ended when {method} was called; try again") from error
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """End the process, its service and what they are about; idempotent. The next call launches another."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None and connection.owner == os.getpid():
            connection.close()

    def _connected(self) -> _Connection:
        with self._lock:
            connection = self._connection
            if connection is None:
                atexit.register(self.close)
            elif connection.owner == os.getpid() and not connection.ended:
                if connection.settings == _settings():
                    return connection
                connection.close()
            self._connection = _Connection()
            return self._connection


def _settings() -> Mapping[str, str]:
    """The variables by which W&B is set up."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_") and name != _SERVICE}


class _IdleError(Exception):
    """The process ended by itself before it took the call."""


class _Connection:
    """One running process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.settings = _settings()
        self.ended = False
        self._gone = threading.Event()
        self._directory = Path(tempfile.mkdtemp(prefix="art-wandb-"))
        self._answers: dict[int, tuple[Future[dict[str, Any]], threading.Event]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._next = 0
        self._ours, theirs = socket.socketpair()
        close_in_forks(self._ours.fileno())
        with theirs:
            command = [sys.executable, "-P", "-m", "art_wandb.child"]
            command += [str(theirs.fileno()), str(self._directory), str(IDLE_S)]
            log = self._directory / "wandb.log"
            launched = Child.launch(command, log_path=log, pass_fds=[theirs.fileno()], env={_SERVICE: ""})
            self._child = asyncio.run(launched)
        threading.Thread(target=self._read, daemon=True, name="art-wandb").start()

    def call(self, method: str, timeout_s: float, data: Mapping[str, Any], given_up: threading.Event) -> Any:
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self.ended:
                raise _IdleError
            self._next += 1
            number = self._next
            self._answers[number] = answer, given_up
        try:
            self._send({"call": number, "method": method, **data})
        except OSError as error:
            self.close()
            raise _IdleError from error
        try:
            found = answer.result(timeout_s)
        except TimeoutError as error:
            self.kill()
            raise StoreUnavailableError(f"W&B did not {method} within {timeout_s:g} s; try again later") from error
        if "error" in found:
            raise from_wire(found["error"], StoreError)
        return found["result"]

    def close(self) -> None:
        """Let it send what is left; what takes longer than it may is lost. Calls left behind are hardly waited for."""
        try:
            self._ours.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has ended
        with self._lock:
            left_behind = any(given_up.is_set() for _, given_up in self._answers.values())
        if not self._gone.wait(PATIENCE_S if left_behind else _STOP_S):
            self.kill()

    def kill(self) -> None:
        """End it at once, with what it has started."""
        kill_group(self._child.pid, signal.SIGKILL)
        self._gone.wait()

    def _send(self, data: dict[str, Any]) -> None:
        with self._sending:
            self._ours.sendall(json.dumps(data).encode() + b"\n")

    def _read(self) -> None:
        with self._ours.makefile("rb") as lines:
            try:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # killed in the middle of an answer
                    found = json.loads(line)
                    with self._lock:
                        self._answers.pop(found["call"])[0].set_result(found)
            except ConnectionResetError:
                self.ended = True  # killed before it had read all
        status = asyncio.run(self._child.exited())
        with self._lock:
            self.ended = True
            left, self._answers = self._answers, {}
        with self._sending:
            close_private(self._ours.detach())
        for each, _ in left.values():
            text = self._child.died(status)
            each.set_exception(
                _IdleError() if status == 0 else StoreUnavailableError(f"the W&B process is gone: {text}")
            )
        remove_directory(self._directory)
        self._gone.set()


WANDB = WandbProcess()
"""The process of this interpreter."""
