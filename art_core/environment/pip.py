"""venv and pip, run for us: what they say as progress, as a log, and as the message of a failure."""

from __future__ import annotations

import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from art_core.environment.built import Place
from art_core.environment.spec import PinnedSet
from art_core.errors import EnvironmentBuildError
from art_core.guard import guarded

_TAIL_LINES = 15
_SET = "requirements.txt"
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"No matching distribution|Could not find a version",
        "your package index does not offer that version for this interpreter and machine: look at `pip config list` "
        "(builds of PyTorch for CPUs alone come from an index of their own, which PIP_EXTRA_INDEX_URL can add), or "
        "name another interpreter with --python",
    ),
    (
        r"No space left|Disk quota",
        "free some space, there and in pip's cache (pip cache purge), or set ART_CACHE elsewhere",
    ),
    (r"Permission denied|Read-only file system", "give this user access, or set ART_CACHE elsewhere"),
    (
        r"Connection|Retrying|timed out|Temporary failure|getaddrinfo|SSLError|ProxyError|40[13] Client Error",
        "your package index can't be reached: look at `pip config list`, then start again; what is downloaded is kept",
    ),
    (
        r"Failed building wheel|subprocess-exited",
        "a package had to be compiled, and that failed",
    ),
    (r"do not match the hashes", "a download was damaged or replaced: `pip cache purge`, then start again"),
)


def install(where: Place, base: str, pinned: PinnedSet, report: Callable[[str], None]) -> None:
    """Make a virtual environment and install a pinned set into it.

    Args:
        where: The environment's place, which does not exist.
        base: The interpreter to make it with.
        pinned: The set.
        report: Gets a line for each package.

    Raises:
        EnvironmentBuildError: With the last lines that were said, and what to try.
        OSError: A command or file can't be opened.
    """
    where.log.write_text("")
    _run([base, "-I", "-m", "venv", str(where.directory)], where, lambda line: None)
    (where.directory / _SET).write_text("".join(f"{line}\n" for line in pinned.lines))
    if (config := Path(sys.prefix, "pip.conf")).is_file():  # the user's settings for the environment that we run in
        shutil.copy2(config, where.directory / config.name)
    progress = _Progress(pinned.lines, report)
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    requirements = str(where.directory / _SET)
    _run([str(where.python), "-I", "-m", "pip", "install", *options, "-r", requirements], where, progress)


class _Progress:
    """pip's lines to ours."""

    def __init__(self, lines: Sequence[str], report: Callable[[str], None]) -> None:
        self._lines, self._report = lines, report

    def __call__(self, said: str) -> None:
        if found := re.match(r"(?:Collecting|Processing) .*\(line (\d+)\)", said):
            number = int(found[1])
            self._report(f"[{number}/{len(self._lines)}] {self._lines[number - 1]}")
        elif said.startswith("Installing collected packages"):
            self._report(f"installing {len(self._lines)} packages")


def _run(argv: Sequence[str], where: Place, on_line: Callable[[str], None]) -> None:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with where.log.open("a") as log, guarded(argv, {"PIP_USER": "0"}) as process:
        log.write(f"$ {' '.join(argv)}\n")
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            tail.append(line.rstrip())
            on_line(line)
        status = process.wait()
    if status:
        said = "\n".join(tail)
        raise EnvironmentBuildError(
            f"{' '.join(argv[:5])} … ended with exit status {status}; {advice(said)}. Its last lines, of "
            f"{where.log}:\n{said}"
        )


def advice(said: str) -> str:
    """What to try after a failure.

    Args:
        said: What was said about it.
    """
    found = [what for pattern, what in _ADVICE if re.search(pattern, said)]
    return found[0] if found else "mend what it says, then start again"
