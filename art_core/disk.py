"""Writes that survive a power failure, and the system's refusals as typed errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from art_core.errors import StoreError

J = TypeVar("J", dict[str, Any], list[Any])

_UNFINISHED = ".new"

_ADVICE = {
    errno.ENOSPC: "free space on that file system",
    errno.EDQUOT: "raise the quota or delete checkpoints",
    errno.EROFS: "mount it writable or choose another path",
    errno.EACCES: "give this user access or choose another path",
    errno.EPERM: "give this user access or choose another path",
}


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the system's refusals inside the block into `StoreError`.

    Args:
        what: What was being done, e.g. ``"commit step 7"``.

    Raises:
        StoreError: Names what, the path, the system's reason and the next step to take.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"can't {what}: {error.filename}: {error.strerror or error}; {advice(error)} and try again"
        ) from error


def advice(error: OSError) -> str:
    """What to do about a refusal of the system's, to stand before "and try again"."""
    return _ADVICE.get(error.errno or 0, "mend that")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file descriptor for the block; an error inside that names no file gets this one's name.

    Args:
        path: The file.
        flags: ``os.O_*``; with ``os.O_NOFOLLOW`` a link is refused.
    """
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(fd)


def write(path: Path, data: bytes) -> None:
    """Write a file; `sync` makes it durable."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as fd:
        write_all(fd, data)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte at the descriptor's position."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's names, to the disk."""
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def replace(path: Path, data: bytes) -> None:
    """Write a file so that at any instant, also a power failure, it is the old one or the new one, whole.

    One writer at a time. What a writer that was killed leaves is found by `unfinished`.
    """
    fresh = path.with_name(f".{path.name}{_UNFINISHED}")
    write(fresh, data)
    sync(fresh)
    os.rename(fresh, path)  # noqa: PTH104 - the same call as the store's, so that one test wraps both
    sync(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, durably; what a kill cut short before is removed first. One writer at a time.

    Args:
        path: Made where it does not stand.
        line: Without its end.
    """
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as fd:
        end = os.lseek(fd, 0, os.SEEK_END)
        if end and os.pread(fd, 1, end - 1) != b"\n":
            end = read(path).rfind(b"\n") + 1
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
        write_all(fd, line + b"\n")
        os.fsync(fd)
    if not end:
        sync(path.parent)


def read(path: Path) -> bytes:
    """A regular file's bytes; never through a link, and never waiting for what may come out of a pipe."""
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with open(fd, "rb", closefd=False) as file:
            return file.read()


def lines(path: Path) -> list[bytes]:
    """Every whole line that `append_line` has added; none where the file does not stand."""
    return read(path).split(b"\n")[:-1] if path.exists() else []


def json_lines(path: Path, kind: type[J]) -> list[J]:
    """What a file holds that `append_line` has written, line by line; nothing where it does not stand.

    Args:
        path: The file.
        kind: What a line must be.

    Raises:
        StoreError: A line is damaged.
    """
    return [parse_line(path, number, line, kind) for number, line in enumerate(lines(path), 1)]


def parse_line(path: Path, number: int, line: bytes, kind: type[J]) -> J:
    """A line of JSON.

    Args:
        path: Where it stands, for the message.
        number: Which line, for the message.
        line: The line.
        kind: What it must be.

    Raises:
        StoreError: It is no JSON, or something else.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} line {number} is damaged: {error}; restore the file or delete that line") from error
    if not isinstance(data, kind):
        raise StoreError(f"{path} line {number} is damaged: no {kind.__name__}; restore the file or delete that line")
    return data


def unfinished(directory: Path) -> list[Path]:
    """Files that `replace` was writing in a directory when its process ended."""
    return list(directory.glob(f".*{_UNFINISHED}"))


def make_directory(path: Path) -> None:
    """Make a directory and its parents; their names are durable when it returns."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove(path: Path) -> None:
    """Remove a directory with what is in it, or whatever else stands there; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_directory(directory: Path) -> None:
    """Remove a directory; one that is gone is no error, because owner and child may both remove it.

    One that is filled meanwhile is emptied again: another thread may just be binding its socket there.
    """
    while True:
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            if not directory.exists():  # else it was something in it that another was faster to remove
                return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
