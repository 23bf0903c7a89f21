"""A file that comes in pieces over the network: written, hashed and forced to the disk while more of them come.

Three things go on at once, in three threads: the event loop receives, one thread writes, another one hashes and may be
some pieces behind; what is left to hash is hashed while the disk works.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from art_core import disk
from art_core.file_record import FileRecord
from art_core.local_store import in_thread

_AHEAD = 4
"""So many pieces may have come that are not written yet."""
_BEHIND = 4
"""So many pieces may be written that are not hashed yet."""


async def land(pieces: AsyncIterable[bytes], path: Path, limit_bytes: int) -> FileRecord:
    """Write the pieces into a file.

    Args:
        pieces: Its bytes, in order.
        path: Must not exist.
        limit_bytes: No more than this, and one piece beyond it, is taken.

    Returns:
        Size and sha256 of what was written.

    Raises:
        OSError: The system refuses to write.
    """
    coming, room, size = SimpleQueue[bytes | None](), asyncio.Semaphore(_AHEAD), 0
    loop = asyncio.get_running_loop()

    def taken() -> Iterator[bytes]:
        while (piece := coming.get()) is not None:
            yield piece
            loop.call_soon_threadsafe(room.release)

    landed = asyncio.ensure_future(in_thread(_write, path, taken()))
    landed.add_done_callback(lambda _: room.release())
    try:
        async for piece in pieces:
            await room.acquire()
            if landed.done():  # the disk refuses
                break
            coming.put(piece)
            size += len(piece)
            if size > limit_bytes:
                break
    finally:
        coming.put(None)
        await asyncio.wait({landed})
    return landed.result()


def _write(path: Path, pieces: Iterable[bytes]) -> FileRecord:
    digest, size, hashing = hashlib.sha256(), 0, deque[Future[None]]()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with disk.opened(path, flags) as fd, ThreadPoolExecutor(1, thread_name_prefix="art-hash") as aside:
        for piece in pieces:
            if len(hashing) == _BEHIND:
                hashing.popleft().result()
            hashing.append(aside.submit(digest.update, piece))
            disk.write_all(fd, piece)
            size += len(piece)
        os.fsync(fd)
        for each in hashing:
            each.result()
    return FileRecord(size_bytes=size, sha256=digest.hexdigest())
