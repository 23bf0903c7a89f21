"""Small file systems, to be filled and made read-only; a test is skipped where this user may not mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE_BYTES = 4096


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """A file system in memory."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user can't mount a file system: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@contextmanager
def filled(path: Path, leave_bytes: int) -> Iterator[None]:
    """A file takes all but so much of the disk."""
    balloon = path / "balloon"
    with balloon.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(path) - leave_bytes)
    try:
        yield
    finally:
        balloon.unlink()
