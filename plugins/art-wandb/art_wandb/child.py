"""The W&B process (see `art_wandb.process`). Run as ``python -m art_wandb.child SOCKET DIRECTORY IDLE_S``."""

from __future__ import annotations

import inspect
import json
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from art_core.errors import StoreError, to_wire
from art_core.process import attach_owner

if TYPE_CHECKING:
    from art_wandb.desk import Desk

_THREADS = 16

_log = logging.getLogger("art.wandb")


class Answers:
    """Makes calls in threads, and writes the answers as they come.

    The SDK keeps the key that it has read. So after a refusal the process ends, and the owner's next call finds another
    one, which reads the key again; unless that key may still bring what a run is told of to W&B.

    Args:
        desk: What is called.
        connection: Where answers go.
    """

    def __init__(self, desk: Desk, connection: socket.socket) -> None:
        self._desk = desk
        self._methods = {
            name: desk.__getattribute__(name) for name, _ in inspect.getmembers(type(desk), inspect.isfunction)
        }
        self._connection = connection
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="art-wandb")
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._useless = self._ended = False
        self.pending = 0
        """Calls that are not answered yet."""

    def take(self, line: bytes) -> None:
        """Begin a call."""
        request: dict[str, Any] = json.loads(line)
        with self._lock:
            if self._ended:
                return  # the owner calls again, when it sees that
            self.pending += 1
        self._threads.submit(self._answer, request.pop("call"), self._methods[request.pop("method")], request)

    def _answer(self, call: int, method: Callable[..., object], arguments: dict[str, Any]) -> None:
        try:
            answer = {"call": call, "result": method(**arguments)}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            answer = {"call": call, "error": to_wire(error)}
            self._useless |= isinstance(error, StoreError) and self._is_useless(error.__cause__)
        with self._lock:
            self.pending -= 1
            self._ended = ended = self._useless and not self.pending
        with self._sending:
            self._connection.sendall(json.dumps(answer).encode() + b"\n")
        if ended:
            os._exit(0)  # there is nothing that the SDK could still send, so it need not try

    def _is_useless(self, error: BaseException | None) -> bool:
        from art_wandb.failure import is_refusal, is_unknown_key

        return is_unknown_key(error) or (is_refusal(error) and not self._desk.opened.observing)


def serve(connection: socket.socket, directory: str, idle_s: float) -> None:
    """Answer until there has been nothing to do for a while, or the owner closes its end.

    Args:
        connection: To the owner.
        directory: Where the SDK keeps what it is about.
        idle_s: How long, without a call under way and without an observed run.
    """
    from art_wandb.desk import Desk

    desk = Desk(directory)
    answers = Answers(desk, connection)
    buffer, patience_s = b"", None  # the call that this was launched for is on its way, however long that is
    while True:
        ready, _, _ = select.select([connection], [], [], patience_s)
        if not ready:
            if answers.pending or desk.opened.observing:
                continue
            break
        data = connection.recv(1 << 16)
        if not data:
            break
        patience_s = idle_s
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            answers.take(line)


def main() -> None:
    """Serve, then end the SDK's background service."""
    fd, directory, idle_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    attach_owner(private=Path(directory))
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)
    # what the SDK keeps goes with this process; keys and settings stay where the user has them
    os.environ |= dict.fromkeys(("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"), directory)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(connection, directory, idle_s)
    import wandb

    wandb.teardown()


if __name__ == "__main__":
    main()
