"""A child process that can't outlive its owner, not even when the owner is killed with -9.

The owner holds the only write end of a pipe, the lifeline; the child blocks a thread on its read end. When the
owner ends, in whatever way, the kernel closes the write end, the child reads end-of-file and kills its own process
group. A parent-death signal would not do: it fires when the *thread* that launched the child ends.

Owner side: `Child.launch`, then `ready`, `exited`, `stop`. Child side, first thing in ``main``: `attach_owner`, and
once it serves: `announce`. Until a child has called `attach_owner` (milliseconds, if it does so before its heavy
imports) it notices nothing; it then dies at that call. A grandchild that leaves the process group escapes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Self

from art_core.config import OWNER_FDS, child_environment, take_owner_fds
from art_core.disk import remove_directory

_TAIL_BYTES = 64 << 10


class ProcessError(Exception):
    """A child process failed; the message ends with its log's last lines. Callers wrap it in a typed error."""


class ProcessDiedError(ProcessError):
    """The child has ended although it was needed.

    Args:
        message: What ended, how, and its log's last lines.
        status: Exit status; negative where a signal ended it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class ProcessTimeoutError(ProcessError, TimeoutError):
    """The child did not announce itself in time; it still runs."""


class Child:
    """A running child process with its own process group. Made by `launch`; usable from any event loop."""

    def __init__(self, popen: Popen[bytes], fds: tuple[int, int], log: tuple[Path, int], private: Path | None) -> None:
        self._popen = popen
        self._log_path, self._log_start = log
        self._private = private
        self._group = threading.Lock()
        self._status: Future[int] = _promise()
        self._announced: Future[bytes] = _promise()
        for target, fd in zip((self._await_exit, self._await_ready), fds, strict=True):
            threading.Thread(target=target, args=(fd,), daemon=True, name=f"art-child-{popen.pid}").start()

    @classmethod
    async def launch(
        cls,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        private: Path | None = None,
    ) -> Self:
        """Start a command that calls `attach_owner`.

        Args:
            argv: The command; its first entry is the executable.
            log_path: File that stdout and stderr are appended to; its directory is made.
            env: Variables added to the inherited environment.
            pass_fds: File descriptors that the child inherits under the same numbers.
            private: The directory that the child gives to `attach_owner`; gone once the child's end is known here.

        Raises:
            ProcessError: The command or the log file can't be opened; names it and the system's reason.
        """
        try:
            return cls._spawn(argv, log_path, env or {}, pass_fds, private)
        except OSError as error:
            raise ProcessError(f"{argv[0]} can't be started: {error}") from error

    @classmethod
    def _spawn(
        cls, argv: Sequence[str], log_path: Path, env: Mapping[str, str], pass_fds: Sequence[int], private: Path | None
    ) -> Self:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        lifeline_read, lifeline_write = os.pipe()
        ready_read, ready_write = os.pipe()
        close_in_forks(lifeline_write)
        try:
            with log_path.open("ab") as log:
                start = log.tell()
                popen = Popen(
                    argv,
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=child_environment({**env, OWNER_FDS: f"{lifeline_read},{ready_write}"}),
                    pass_fds=(*pass_fds, lifeline_read, ready_write),
                    start_new_session=True,
                )
        except OSError:
            close_private(lifeline_write)
            os.close(ready_read)
            raise
        finally:
            os.close(lifeline_read)
            os.close(ready_write)
        return cls(popen, (lifeline_write, ready_read), (log_path, start), private)

    @property
    def pid(self) -> int:
        """Process id, which is also its process group's."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not yet ended."""
        return not self._status.done()

    async def ready(self, timeout_s: float) -> dict[str, Any]:
        """Wait for what the child announces.

        Raises:
            ProcessDiedError: It ended first.
            ProcessTimeoutError: It announced nothing in time; it still runs, so `stop` it.
        """
        try:
            async with asyncio.timeout(timeout_s):
                line = await asyncio.wrap_future(self._announced)
                if not line:
                    raise self.died(await self.exited())
        except TimeoutError as error:
            raise ProcessTimeoutError(
                f"process {self.pid} was not ready within {timeout_s:g} s; {self._tail_text()}"
            ) from error
        data: dict[str, Any] = json.loads(line)
        return data

    async def exited(self) -> int:
        """Wait for its end and return the exit status, negative where a signal ended it."""
        return await asyncio.wrap_future(self._status)

    async def stop(self, timeout_s: float) -> int:
        """End it and its whole process group: SIGTERM, then SIGKILL. Idempotent; a cancelled stop kills at once.

        Args:
            timeout_s: From SIGTERM to SIGKILL.

        Returns:
            The exit status.
        """
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.exited()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self.exited()
        finally:
            self._signal(signal.SIGKILL)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that this process has logged."""
        with self._log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - _TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def died(self, status: int) -> ProcessDiedError:
        """The error that says how it ended."""
        return ProcessDiedError(f"process {self.pid} {describe_exit(status)}; {self._tail_text()}", status)

    def _tail_text(self) -> str:
        return f"last lines of {self._log_path}:\n{self.log_tail() or '(nothing)'}"

    def _signal(self, number: signal.Signals) -> None:
        with self._group:
            if self.alive:
                kill_group(self.pid, number)

    def _await_exit(self, lifeline_fd: int) -> None:
        status = self._popen.wait()
        with self._group:
            # Grandchildren keep the group's number taken; an empty group's could only be another's if every
            # process id had been handed out since the line above.
            kill_group(self.pid, signal.SIGKILL)
            close_private(lifeline_fd)
            try:
                if self._private is not None:
                    remove_directory(self._private)
            finally:
                self._status.set_result(status)

    def _await_ready(self, ready_fd: int) -> None:
        with open(ready_fd, "rb") as pipe:
            self._announced.set_result(pipe.readline())


def describe_exit(status: int) -> str:
    """How a process ended, in words: ``"was killed by SIGKILL"`` or ``"ended with exit status 3"``."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def kill_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group; one that has ended already is no error."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # Nothing of it is left, which is what was wanted.


def _promise() -> Future[Any]:
    # Marked running, so that a cancelled waiter can't cancel it for the others.
    promise: Future[Any] = Future()
    promise.set_running_or_notify_cancel()
    return promise


_private_fds: set[int] = set()


def close_in_forks(fd: int) -> None:
    """Keep a descriptor out of children that fork without exec, e.g. multiprocessing's; close it by `close_private`."""
    _private_fds.add(fd)


def close_private(fd: int) -> None:
    """Close a descriptor that `close_in_forks` was given."""
    _private_fds.discard(fd)
    os.close(fd)


def _close_private_fds() -> None:
    for fd in _private_fds:
        os.close(fd)
    _private_fds.clear()


os.register_at_fork(after_in_child=_close_private_fds)

_ready_fds: list[int] = []


def attach_owner(private: Path | None = None) -> None:
    """Child side: from now on die, with the whole process group, when the owner ends. Call it first in ``main``.

    Args:
        private: A directory of this process's, made here; it goes when the owner ends, or on SIGTERM. Where this
            process is killed its owner removes it, if `Child.launch` was told of it.

    Raises:
        ConfigError: This process was not started by `Child.launch`.
    """
    lifeline_fd, ready_fd = take_owner_fds()
    for fd in (lifeline_fd, ready_fd):
        os.set_inheritable(fd, False)
    _ready_fds.append(ready_fd)
    if private is not None:
        private.mkdir(mode=0o700, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda number, frame: _die(number, private))
    threading.Thread(target=_die_with_owner, args=(lifeline_fd, private), daemon=True, name="art-lifeline").start()


def announce(data: Mapping[str, Any]) -> None:
    """Child side, once, after `attach_owner`: tell the owner that this process is ready.

    Args:
        data: JSON data that `Child.ready` returns in the owner.
    """
    with open(_ready_fds.pop(), "wb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        pipe.write(json.dumps(data).encode() + b"\n")


def _die_with_owner(lifeline_fd: int, private: Path | None) -> None:
    os.read(lifeline_fd, 1)
    try:
        if private is not None:
            remove_directory(private)
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _die(number: int, private: Path) -> None:
    remove_directory(private)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
