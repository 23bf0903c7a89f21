"""A command that knows nothing of us and still can't outlive us: ``python -m art_core.guard COMMAND...``.

The guard attaches itself to its owner (`art_core.process`), runs the command in its own process group with the same
output, and ends with its status. Launch it by `art_core.process.Child`, or by `guarded` where the output is read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from art_core.config import OWNER_FDS, child_environment
from art_core.process import attach_owner, close_in_forks, close_private, kill_group


@contextmanager
def guarded(argv: Sequence[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read here; what still runs of it when the block ends is killed.

    Args:
        argv: The command.
        variables: Added to the inherited environment.

    Yields:
        The process; both of its outputs are on its ``stdout``.

    Raises:
        OSError: It can't be started.
    """
    lifeline_read, lifeline_write = os.pipe()
    close_in_forks(lifeline_write)
    nobody_waits = os.open(os.devnull, os.O_WRONLY)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "art_core.guard", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=child_environment({**variables, OWNER_FDS: f"{lifeline_read},{nobody_waits}"}),
            pass_fds=(lifeline_read, nobody_waits),
            start_new_session=True,
        )
    except OSError:
        close_private(lifeline_write)
        raise
    finally:
        os.close(lifeline_read)
        os.close(nobody_waits)
    try:
        with process:
            try:
                yield process
            finally:
                kill_group(process.pid, signal.SIGKILL)
    finally:
        close_private(lifeline_write)


def main() -> None:
    """Run the command of this process's arguments, and end with its status."""
    attach_owner()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _left_to_the_command)
    try:
        status = subprocess.call(sys.argv[1:])
    except OSError as error:
        sys.exit(f"{sys.argv[1]} can't be started: {error}")
    sys.exit(status if status >= 0 else 128 - status)


def _left_to_the_command(number: int, frame: object) -> None:
    """The whole group was sent the signal; the guard waits for what the command does about it."""


if __name__ == "__main__":
    main()
