"""Child processes of the product as forks of this warm process, in place of new interpreters.

The engine's and the trainer's own servers, their sockets, pipes and deaths are real; what is skipped is exec and the
seconds of importing torch. So what is not proved is that a fresh interpreter finds its modules, and that a child which
is killed before it has called `attach_owner` leaves nothing: both are in ``test_process_kill.py``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from unittest.mock import patch

from art_core import process


class WarmChild:
    """What `art_core.process` uses of `subprocess.Popen`.

    Args:
        argv: ``interpreter … -m module arguments``.
        stdout: Where the child logs.
        env: The child's whole environment.
        pass_fds: What it inherits besides.
    """

    begun: ClassVar[Callable[[str], None]]
    kept_fds: ClassVar[Sequence[int]]

    def __init__(
        self, argv: Sequence[str], *, stdout: BinaryIO, env: Mapping[str, str], pass_fds: Sequence[int], **_: Any
    ) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            self._run(list(argv), stdout.fileno(), env, {*pass_fds, *self.kept_fds})

    def wait(self) -> int:
        """The exit status, negative where a signal ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _run(self, argv: list[str], log_fd: int, env: Mapping[str, str], kept_fds: set[int]) -> None:
        status = 1
        try:
            os.setsid()
            for fd in (1, 2):
                os.dup2(log_fd, fd)
            _close_all_but(kept_fds)
            os.environ.clear()
            os.environ.update(env)
            module = argv[argv.index("-m") + 1]
            sys.argv = argv[argv.index("-m") + 1 :]
            type(self).begun(module)
            import_module(module).main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    """Close every descriptor above the standard ones."""
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    for low, high in pairwise([2, *sorted(kept), highest + 1]):
        if low + 1 < high:  # an empty range that begins at 0 would be taken for all
            os.closerange(low + 1, high)


@contextmanager
def forked_children(begun: Callable[[str], None], *kept_fds: int) -> Iterator[None]:
    """Inside, `Child.launch` forks; the modules it would start must be imported already.

    Args:
        begun: Called first in each child, with the name of the module that it runs.
        kept_fds: File descriptors that children keep.
    """

    class Forked(WarmChild):
        pass

    Forked.begun, Forked.kept_fds = staticmethod(begun), kept_fds
    with patch.object(process, "Popen", Forked):
        yield
