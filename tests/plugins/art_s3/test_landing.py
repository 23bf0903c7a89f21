"""A file that comes in pieces: whole and on the disk, or an error; nobody waits for what will not come."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from art_s3.landing import land

NO_LIMIT = 1 << 40


async def pieces(count: int, then: Exception | None = None) -> AsyncIterator[bytes]:
    for index in range(count):
        await asyncio.sleep(0)
        yield bytes([index % 251]) * (1000 + index)
    if then is not None:
        raise then


async def test_every_piece_lands_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced, real = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), forced.append(os.fstat(fd).st_size)))
    expected = b"".join([piece async for piece in pieces(300)])
    seen = await land(pieces(300), tmp_path / "file", NO_LIMIT)
    assert (tmp_path / "file").read_bytes() == expected
    assert (seen.size_bytes, seen.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())
    assert forced == [len(expected)]


async def test_a_file_without_a_byte(tmp_path: Path) -> None:
    assert (await land(pieces(0), tmp_path / "file", NO_LIMIT)).size_bytes == 0
    assert (tmp_path / "file").read_bytes() == b""


async def test_no_more_than_the_limit_and_a_piece_is_taken(tmp_path: Path) -> None:
    seen = await land(pieces(10**9), tmp_path / "file", 5000)
    assert 5000 < seen.size_bytes == (tmp_path / "file").stat().st_size < 7000


async def test_a_disk_that_refuses_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        await land(pieces(10**9), tmp_path / "file", NO_LIMIT)


async def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        await land(pieces(10**9), tmp_path / "file", NO_LIMIT)
    (tmp_path / "link").symlink_to(tmp_path / "else")
    with pytest.raises(FileExistsError):
        await land(pieces(10**9), tmp_path / "link", NO_LIMIT)
    assert (tmp_path / "file").read_bytes() == b"mine" and not (tmp_path / "else").exists()


async def test_a_connection_that_breaks_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError, match="gone"):
        await land(pieces(20, then=ConnectionResetError("gone")), tmp_path / "file", NO_LIMIT)


async def test_it_is_cancelled_while_a_server_is_silent(tmp_path: Path) -> None:
    silent = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"first"
        silent.set()
        await asyncio.Event().wait()

    landing = asyncio.create_task(land(stalled(), tmp_path / "file", NO_LIMIT))
    await silent.wait()
    landing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await landing
    assert (tmp_path / "file").read_bytes() == b"first", "nothing is written behind the caller's back"
