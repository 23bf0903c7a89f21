"""Log lines of a child process, told again in its owner.

The child's own log file has everything that it logs and prints. Through a pipe beside it go the lines that a person who
watches the owner should see too: ours, and other libraries' warnings, each with its level, cut to one write.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading

_CHARACTERS = 900
"""So much of a message is told again: a line is then one write, which no other process's write can fall into."""


class LogLineHandler(logging.Handler):
    """Child side. Never waits: while the owner does not read and the pipe is full, lines stay in the log file alone.

    Args:
        fd: The pipe's write end.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        os.set_inheritable(fd, False)  # a grandchild would keep the owner's reader waiting
        os.set_blocking(fd, False)
        self._fd = fd

    def filter(self, record: logging.LogRecord) -> bool:
        """Our own lines, and warnings of anybody's."""
        return record.name.split(".")[0] in {"art", "art_core"} or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        line = json.dumps([record.levelno, record.name, record.getMessage()[:_CHARACTERS]], ensure_ascii=False)
        data = line.encode(errors="replace") + b"\n"
        try:
            if len(data) <= select.PIPE_BUF:
                os.write(self._fd, data)
        except BlockingIOError:
            return
        except OSError:
            self.handleError(record)


def forward(fd: int, logger: logging.Logger) -> None:
    """Owner side: log what comes through the pipe, in a thread that ends when no process can write to it any more.

    Args:
        fd: The pipe's read end; closed at the end.
        logger: Gets each line at its own level, with the name of the logger that wrote it.
    """
    threading.Thread(target=_read, args=(fd, logger), daemon=True, name="art-log-lines").start()


def _read(fd: int, logger: logging.Logger) -> None:
    with open(fd, encoding="utf-8") as pipe:
        for line in pipe:
            level, name, message = json.loads(line)
            logger.log(level, "%s: %s", name, message)
