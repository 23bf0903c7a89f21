"""A checkpoint's file: its size and sha256, read once, never through a link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from queue import SimpleQueue

from pydantic import BaseModel, ConfigDict, Field

from art_core import disk
from art_core.daemon import spawn
from art_core.errors import CheckpointCorruptError

_PIECE_BYTES = 256 << 10  # small enough for a processor's own cache
_FORCE_BYTES = 16 << 20
"""A file that comes is forced to the disk whenever so much more of it is there."""
_NICE = 10
"""By so much a thread that hashes beside an upload is nicer: it takes what the upload leaves."""


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def record(path: Path) -> FileRecord:
    """Size and sha256 of a regular file.

    Raises:
        CheckpointCorruptError: It is missing, a link, a device or a directory.
        StoreError: The system refuses to read it.
    """
    with open_regular(path) as (file, size):
        return FileRecord(size_bytes=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def record_beside(path: Path) -> FileRecord:
    """`record` in a thread that gives way to others: for beside an upload, which is not to wait for it.

    Raises:
        CheckpointCorruptError: It is missing, a link, a device or a directory.
        StoreError: The system refuses to read it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="art-hash", initializer=_give_way) as aside:
        return aside.submit(record, path).result()


def force(path: Path) -> FileRecord:
    """Force a regular file's bytes to the disk and hash them meanwhile: the one waits while the other works.

    Raises:
        CheckpointCorruptError: It is missing, a link, a device or a directory.
        StoreError: The system refuses.
    """
    with open_regular(path) as (file, _):
        return _forced(file)


def copy(source: Path, target: Path) -> FileRecord:
    """Copy a regular file, and force the copy to the disk while it is hashed.

    Args:
        source: Never followed where it is a link.
        target: Must not exist.

    Returns:
        Size and sha256 of the copy.

    Raises:
        CheckpointCorruptError: The source is missing, a link, a device or a directory.
        StoreError: The system refuses.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    piece = memoryview(bytearray(_PIECE_BYTES))
    aside = disk.disk_errors(f"copy {source.name}")  # what fails over the target says nothing of the source
    with open_regular(source) as (file, _), aside, disk.opened(target, flags) as fd:
        while size := file.readinto(piece):
            disk.write_all(fd, piece[:size])
        os.lseek(fd, 0, os.SEEK_SET)
        return _forced(FileIO(fd, closefd=False))


def receive(pieces: Iterable[bytes | memoryview], path: Path, limit_bytes: int) -> FileRecord:
    """Write a file that comes in pieces, and force it to the disk; it is hashed meanwhile.

    The hash reads the file again, out of the system's cache, and may lag behind: while bytes come the processors are
    busy with those, and while the disk works they are idle. A large file is forced as it comes.

    Args:
        pieces: Its bytes, in order; 256 KB to 1 MB each is a good size.
        path: Must not exist.
        limit_bytes: No more than this, and one piece beyond it, is taken.

    Returns:
        Size and sha256 of what stands in the file.

    Raises:
        OSError: The system refuses to write.
    """
    size, forced_bytes, written, forced = 0, 0, SimpleQueue[int | None](), Future[None]()
    forced.set_result(None)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with disk.opened(path, flags) as fd:
        hashed = spawn(_hash_behind, fd, written)
        try:
            for piece in pieces:
                disk.write_all(fd, piece)
                size += len(piece)
                written.put(size)
                if size > limit_bytes:
                    break
                if size - forced_bytes >= _FORCE_BYTES and forced.done():
                    forced.result()  # a disk tells of an error once
                    forced, forced_bytes = spawn(os.fsync, fd), size
            forced.result()
            os.fsync(fd)
        finally:
            written.put(None)
            hashed.exception(), forced.exception()  # both have ended before the file is closed
        return FileRecord(size_bytes=size, sha256=hashed.result())


def _hash_behind(fd: int, written: SimpleQueue[int | None]) -> str:
    """Hash a file up to each size that it has reached."""
    digest, at, piece = hashlib.sha256(), 0, memoryview(bytearray(_PIECE_BYTES))
    while (size := written.get()) is not None:
        while at < size and (count := os.preadv(fd, [piece[: size - at]], at)):
            digest.update(piece[:count])
            at += count
    return digest.hexdigest()


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)


def _forced(file: FileIO) -> FileRecord:
    with ThreadPoolExecutor(1, thread_name_prefix="art-force") as aside:
        forced = aside.submit(os.fsync, file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        forced.result()
    return FileRecord(size_bytes=file.tell(), sha256=digest)


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[FileIO, int]]:
    """Open a regular file for reading, never through a link and never waiting on a pipe; with its size.

    Raises:
        CheckpointCorruptError: It is missing, a link, a device or a directory.
        StoreError: The system refuses to read it.
    """
    with disk.disk_errors("read a checkpoint"):
        try:
            with disk.opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise corrupt(path, "is not a regular file")
                yield FileIO(fd, closefd=False), status.st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise corrupt(path, "is missing") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise corrupt(path, "is not a regular file") from error
            raise


def corrupt(path: object, problem: str) -> CheckpointCorruptError:
    """The error that a checkpoint's file is not as it should be.

    Args:
        path: The file, or what to call it.
        problem: For example ``"is missing"``.
    """
    return CheckpointCorruptError(
        f"checkpoint file {path} {problem}; delete that step, or restore the file, and resume", stage="checkpoint"
    )


def differs(path: object, seen: FileRecord, expected: FileRecord) -> CheckpointCorruptError:
    """The error that a checkpoint's file has other bytes than its manifest says.

    Args:
        path: The file, or what to call it.
        seen: What it is.
        expected: What the manifest says.
    """
    return corrupt(
        path,
        f"has {seen.size_bytes} bytes, sha256 {seen.sha256}; its manifest says {expected.size_bytes} bytes, "
        f"sha256 {expected.sha256}",
    )
