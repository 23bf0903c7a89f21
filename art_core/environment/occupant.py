"""Processes that run in an environment, whoever started them. Asks the kernel, by Linux's ``/proc``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROGRAM_CHARACTERS = 100


@dataclass(frozen=True)
class Occupant:
    """A process."""

    pid: int
    program: str
    """Its command line without its directory, or what it calls itself."""


def occupants(directory: Path) -> list[Occupant]:
    """Processes that were started by an environment's interpreter, or have a library of it in memory.

    A process that changes its own title, as servers do with their children, still shows its libraries. Of other users'
    processes only the command is seen. Where there is no ``/proc`` nothing is known, and none are found.

    Args:
        directory: The environment's.
    """
    prefix = os.fsencode(directory.resolve()) + b"/"
    found = []
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        command = _read(process / "cmdline")
        if command.startswith(prefix) or b" " + prefix in _read(process / "maps"):
            first, *rest = command.decode(errors="replace").rstrip("\0").split("\0")
            program = " ".join([Path(first).name, *rest])
            found.append(Occupant(int(process.name), program[:_PROGRAM_CHARACTERS]))
    return found


def _read(path: Path) -> bytes:
    """What the kernel says; nothing of a process that has ended, and of another user's memory."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
