"""A program's way out of a call that a server does not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from art_s3.bucket import S3Bucket

from art_core.testing.condition import LONGEST_S, TOLD_S, until, within
from tests.plugins.art_s3.place import Place
from tests.plugins.art_s3.proxy import Spoil, proxy


@pytest.mark.parametrize("silent", ["list-type", "partNumber=2"])
async def test_nobody_waits_for_a_silent_server(place: Place, server: str, tmp_path: Path, silent: str) -> None:
    asked = threading.Event()

    def answer(method: str, path: str) -> tuple[int, str] | None:
        if silent not in path:
            return None
        asked.set()
        return 0, ""

    file = tmp_path / "file"
    file.write_bytes(bytes(45 << 20))
    with proxy(server, Spoil(answer=answer)) as address:
        bucket = S3Bucket(place.options.model_copy(update={"endpoint_url": address, "part_bytes": 5 << 20}))
        call = asyncio.create_task(bucket.list("") if silent == "list-type" else bucket.upload("o", file))
        await until(lambda: asked.is_set() or call.done(), "the server is asked")
        with within(TOLD_S, "a cancelled call ends"):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions
name, server, *cancelled = sys.argv[1:]
bucket = S3Bucket(S3StoreOptions(bucket=name, endpoint_url=server))
async def main():
    await asyncio.gather(*(bucket.put(f"{number}", b"x") for number in range(20)))
    for address, directory in zip(cancelled[::2], cancelled[1::2]):
        bad = S3Bucket(S3StoreOptions(bucket=name, endpoint_url=address, timeout_s=600))
        call = bad.download("0", Path(directory) / str(os.getpid()), 10) if directory else bad.get("0", 1)
        await asyncio.wait_for(call, 0.1)
asyncio.run(main())
"""


def test_a_program_ends_right_after_its_last_call(place: Place, server: str, tmp_path: Path) -> None:
    """Whether the server has answered that one, or has not, or fell silent in the midst of a file."""
    silent, stalled = Spoil(answer=lambda method, path: (0, "")), Spoil(cut=lambda method, path: 0, stall=True)
    with proxy(server, silent) as mute, proxy(server, stalled) as half:
        for cancelled in ([], [mute, ""], [half, str(tmp_path)]):
            command = [sys.executable, "-c", PROGRAM, place.bucket, server, *cancelled]
            programs = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
            try:
                ends = [(program.communicate(timeout=LONGEST_S)[1], program.returncode) for program in programs]
            finally:
                for program in programs:
                    program.kill()
            told = b"TimeoutError" if cancelled else b""
            assert all(told in text and code == bool(told) for text, code in ends), ends
