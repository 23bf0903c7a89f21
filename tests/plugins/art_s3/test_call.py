"""A program's way out of a call: at once where a server is silent, in order where it is not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from art_s3.bucket import S3Bucket
from art_s3.call import GivenUpError, in_daemon, until

from art_core.testing.condition import TOLD_S, within
from tests.plugins.art_s3.place import Place
from tests.plugins.art_s3.proxy import Spoil, proxy


async def test_who_is_cancelled_be_it_twice_waits_for_the_end() -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless() -> Iterator[int]:
        begun.set()
        while True:
            yield 1

    def work(given_up: threading.Event) -> int:
        try:
            return sum(until(given_up, endless()))
        finally:
            ended.set()

    call = asyncio.create_task(in_daemon(work))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_what_it_raises_is_raised() -> None:
    def work(given_up: threading.Event) -> int:
        given_up.set()
        return sum(until(given_up, [1]))

    with pytest.raises(GivenUpError):
        await in_daemon(work)


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
        await asyncio.to_thread(asked.wait)
        with within(TOLD_S, "a cancelled call ends"):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


PROGRAM = """
import asyncio, sys
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions
bucket = S3Bucket(S3StoreOptions(bucket=sys.argv[1], endpoint_url=sys.argv[2]))
async def main():
    await asyncio.gather(*(bucket.put(f"{number}", b"x") for number in range(20)))
    if sys.argv[3:]:
        await asyncio.wait_for(S3Bucket(S3StoreOptions(bucket="b", endpoint_url=sys.argv[3])).get("silent", 1), 0.1)
asyncio.run(main())
"""


def test_a_program_ends_right_after_its_last_call(place: Place, server: str) -> None:
    """Whether or not the server has answered that one."""
    with proxy(server, Spoil(answer=lambda method, path: (0, ""))) as silent:
        for more, told in (([], b""), ([silent], b"TimeoutError")):
            command = [sys.executable, "-c", PROGRAM, place.bucket, server, *more]
            programs = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
            ends = [(program.communicate()[1], program.returncode) for program in programs]
            assert all(told in text and code == bool(told) for text, code in ends), ends
