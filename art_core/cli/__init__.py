"""The program ``art``. Its commands are in `art_core.cli.program`; here is only how it starts and ends."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 128 + signal.SIGINT
"""The exit code of what Ctrl-C has ended, as shells know it."""


def main() -> NoReturn:
    """Run the command line (`art_core.cli.program.run`), after which the process ends at once.

    The interpreter is not taken down first: a thread in which a client library still waits for a silent server might
    come back in the midst of that and abort the process, and its exit code would be that of a crash.

    Ctrl-C ends it with exit code 130 and no traceback. While the commands are imported nothing has begun that would
    need an orderly end; afterwards a command is given the chance of one.
    """
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell has it ignored
    if heeds:
        signal.signal(signal.SIGINT, _quit)
    from art_core.cli.program import run

    try:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        code = _INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _quit(signum: int, frame: FrameType | None) -> NoReturn:
    os._exit(_INTERRUPTED)
