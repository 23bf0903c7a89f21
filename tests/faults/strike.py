"""When a victim is killed, its points, where it can be, and what it said before."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from art_core.timing import Timings
from tests.faults.kill import DISK, Call, hooked

CLIENT = "client"
INSTANT = "instant"


@dataclass(frozen=True)
class Strike:
    """When to kill, and whom."""

    role: str
    """``client``, or which of its child processes."""
    kind: str
    """For example ``rename before`` or ``commit after``; `INSTANT`: at a time."""
    count: int = 0
    """The how-manieth of its kind in that process."""
    after_s: float = 0.0
    """For `INSTANT`: so long after the process began."""


class Arms:
    """In a victim and its forks: counts the points of a process, and kills it at one of them, once.

    Args:
        strike: None: tell every point instead.
        tell: Takes words for whoever forked the victim.
        calls: What are points, besides the stages of a step and the parts of a publication.
    """

    def __init__(self, strike: Strike | None, tell: Callable[..., None], calls: Sequence[Call] = ()) -> None:
        self._strike = strike
        self._tell = tell
        self._calls = [*DISK, *calls]
        self._struck = mmap.mmap(-1, 1)  # shared with forks: a process that is started again is not killed again
        self._role = ""
        self._seen: Counter[str] = Counter()
        self._guard = threading.Lock()

    def begin(self, role: str) -> None:
        """This process, a new fork, is that one."""
        self._role = role
        self._seen.clear()
        self._guard = threading.Lock()  # the owner's may have been held at the fork
        strike = self._strike
        if strike and (strike.role, strike.kind) == (role, INSTANT) and not self._struck[0]:
            timer = threading.Timer(strike.after_s, self._kill)
            timer.daemon = True
            timer.start()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Every point inside counts."""
        real, act = Timings.span, self._act

        @contextmanager
        def span(timings: Timings, name: str) -> Iterator[None]:
            act(name, None, False)
            with real(timings, name):
                yield
            act(name, None, True)

        with hooked(act, self._calls), patch.object(Timings, "span", span):
            yield

    def _act(self, name: str, what: object, after: bool) -> None:
        kind = f"{name} {'after' if after else 'before'}"
        with self._guard:
            self._seen[kind] += 1
            strike, count = self._strike, self._seen[kind]
        if strike is None:
            self._tell("point", self._role, kind)
        elif (self._role, kind, count) == (strike.role, strike.kind, strike.count):
            self._kill()

    def _kill(self) -> None:
        if not self._struck[0]:
            self._struck[0] = 1
            self._tell("struck")
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Told:
    """What a victim said."""

    opened: int | None = None
    training: int | None = None
    served: int | None = None
    errors: list[str] = field(default_factory=list)
    points: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    struck_s: float | None = None
    """When it was killed, on the clock of `time.monotonic`."""

    def take(self, line: str) -> None:
        """One line of its."""
        word, _, value = line.partition(" ")
        match word:
            case "open":
                self.opened = int(value)
            case "training":
                self.training = int(value)
            case "served":
                self.served = int(value)
            case "error":
                self.errors.append(value)
            case "point":
                role, _, kind = value.partition(" ")
                self.points[role][kind] += 1
            case "struck":
                self.struck_s = time.monotonic()
