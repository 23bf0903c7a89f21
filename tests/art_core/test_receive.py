"""A file that comes in pieces: whole, hashed and on the disk, or an error."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from art_core.file_record import receive, record, record_beside
from art_core.testing.condition import LONGEST_S

NO_LIMIT = 1 << 40


def pieces(count: int, then: Exception | None = None) -> Iterator[bytes]:
    for index in range(count):
        yield bytes([index % 251]) * (1000 + index)
    if then is not None:
        raise then


def test_every_piece_lands_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced, real = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), forced.append(os.fstat(fd).st_size)))
    expected = b"".join(pieces(3000))
    seen = receive(pieces(3000), tmp_path / "file", NO_LIMIT)
    assert (tmp_path / "file").read_bytes() == expected
    assert (seen.size_bytes, seen.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())
    assert seen == record(tmp_path / "file") == record_beside(tmp_path / "file")
    assert forced == [len(expected)]


def test_a_large_file_is_forced_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the disk says of a part of it is not lost, though it says so only once."""
    forced, asked, fails = list[int](), threading.Event(), False

    def fsync(fd: int) -> None:
        forced.append(os.fstat(fd).st_size)
        asked.set()
        if fails and len(forced) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def large() -> Iterator[bytes]:
        for index in range(50):
            if index == 20:
                assert asked.wait(LONGEST_S)
            yield bytes(1 << 20)

    monkeypatch.setattr(os, "fsync", fsync)
    seen = receive(large(), tmp_path / "file", NO_LIMIT)
    assert seen.sha256 == hashlib.sha256(bytes(50 << 20)).hexdigest()
    assert 16 << 20 <= forced[0] <= 20 << 20 and forced[-1] == seen.size_bytes == 50 << 20
    fails, forced = True, []
    asked.clear()
    with pytest.raises(OSError, match="Input/output"):
        receive(large(), tmp_path / "again", NO_LIMIT)


def test_a_file_without_a_byte(tmp_path: Path) -> None:
    assert receive(pieces(0), tmp_path / "file", NO_LIMIT).size_bytes == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_no_more_than_the_limit_and_a_piece_is_taken(tmp_path: Path) -> None:
    seen = receive(pieces(10**9), tmp_path / "file", 5000)
    assert 5000 < seen.size_bytes == (tmp_path / "file").stat().st_size < 7000


def test_a_disk_that_refuses_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        receive(pieces(10**9), tmp_path / "file", NO_LIMIT)


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        receive(pieces(10**9), tmp_path / "file", NO_LIMIT)
    (tmp_path / "link").symlink_to(tmp_path / "else")
    with pytest.raises(FileExistsError):
        receive(pieces(10**9), tmp_path / "link", NO_LIMIT)
    assert (tmp_path / "file").read_bytes() == b"mine" and not (tmp_path / "else").exists()


def test_a_connection_that_breaks_ends_it(tmp_path: Path) -> None:
    with pytest.raises(EOFError, match="gone"):
        receive(pieces(20, then=EOFError("gone")), tmp_path / "file", NO_LIMIT)


def test_what_somebody_cut_short_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    def cut() -> Iterator[bytes]:
        os.truncate(tmp_path / "file", 0)
        yield b""
        yield b"x"
        os.truncate(tmp_path / "file", 0)

    seen = receive(cut(), tmp_path / "file", NO_LIMIT)
    assert seen.size_bytes == 1, "what was written; whoever holds it to a manifest finds the file out"
