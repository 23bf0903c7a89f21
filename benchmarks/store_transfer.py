"""How fast the S3 store carries bytes beside other clients, in one run against one server.

``store`` is what the store does with a file of a checkpoint: up, in parts where it is large, and hashed; down, hashed
and forced to the disk. The others hash nothing, and what they got is forced to the disk as well: obstore by itself,
boto3's transfer manager, down also botocore's bare call, and s3fs where it is installed. (boto3 over awscrt takes no
endpoint with a port.) ``down`` is into a file on a disk; ``down_memory`` the same into a file system in memory, where
forcing costs nothing and the hash therefore shows most. Rounds take turns. Without ``--endpoint`` the server is moto's,
in a process of its own; on loopback the server and the client share the processors, so only ratios mean something, and
nothing is said about a network.

    python benchmarks/store_transfer.py [--megabytes 10 50 175] [--rounds 15] [--endpoint URL] [--directory DIR]

With ``--endpoint`` the AWS chain gives the credentials. Ceph's RGW starts and gives both by ``python -m
tests.servers.rgw python benchmarks/store_transfer.py --rounds 3`` (more fill its store). The last line of output is one
JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import obstore
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions

from art_core import disk
from art_core.file_record import record

BUCKET = "art-bench"
MEMORY = Path("/dev/shm")
Client = tuple[Callable[[Path], object] | None, Callable[[Path], object]]
"""Puts a file up, where it carries large ones; gets it down into a path and forces it to the disk."""


@contextmanager
def moto() -> Iterator[str]:
    """Moto's server, in a process of its own."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    code = (
        "from moto.server import ThreadedMotoServer as S; import sys; s = S('127.0.0.1', 0, verbose=False); s.start(); "
        "print('http://%s:%s' % s.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def clients(endpoint: str, loop: asyncio.AbstractEventLoop) -> dict[str, Client]:
    """Every client by name."""
    ours = S3Bucket(S3StoreOptions(bucket=BUCKET, endpoint_url=endpoint))
    config = botocore.config.Config(s3={"addressing_style": "path"})
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
    if BUCKET not in [each["Name"] for each in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET)

    async def up(path: Path) -> None:
        await asyncio.gather(asyncio.to_thread(record, path), ours.upload("store", path))

    def raw_down(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for piece in obstore.get(ours._store, "obstore").stream(256 << 10):
                file.write(piece)

    def got(path: Path) -> None:
        body = s3.get_object(Bucket=BUCKET, Key="boto3")["Body"]
        with path.open("wb", buffering=0) as file:
            while piece := body.read(1 << 20):
                file.write(piece)

    made: dict[str, Client] = {
        "store": (
            lambda path: loop.run_until_complete(up(path)),
            lambda path: loop.run_until_complete(ours.download("store", path, 1 << 40)),
        ),
        "obstore": (lambda path: obstore.put(ours._store, "obstore", path), forced(raw_down)),
        "boto3": (
            lambda path: s3.upload_file(str(path), BUCKET, "boto3"),
            forced(lambda path: s3.download_file(BUCKET, "boto3", str(path))),
        ),
        "botocore": (None, forced(got)),
    }
    if find_spec("s3fs"):
        import s3fs

        keys = {"key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}
        fs = s3fs.S3FileSystem(**keys, endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
        made["s3fs"] = (
            lambda path: fs.put_file(str(path), f"{BUCKET}/s3fs"),
            forced(lambda path: fs.get_file(f"{BUCKET}/s3fs", str(path))),
        )
    return made


def forced(down: Callable[[Path], object]) -> Callable[[Path], None]:
    """Force what comes down to the disk: the store does so itself."""

    def call(path: Path) -> None:
        down(path)
        disk.sync(path)

    return call


def measure(made: dict[str, Client], megabytes: int, rounds: int, directory: Path) -> dict[str, Any]:
    """Median MB/s of every client, and the store's share of the fastest other's; the first round warms up."""
    seconds = {way: {name: list[float]() for name in made} for way in ("up", "down", "down_memory")}
    with tempfile.TemporaryDirectory(dir=directory) as here, tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        source = Path(here) / "source"
        source.write_bytes(os.urandom(megabytes * 1_000_000))
        targets = {"down": Path(here) / "target", "down_memory": Path(memory) / "target"}
        for _ in range(rounds + 1):
            for name, (up, down) in made.items():
                if up is not None:
                    seconds["up"][name].append(timed(up, source))
                for way, target in targets.items():
                    seconds[way][name].append(timed(down, target))
                    target.unlink()
    speeds = {
        way: {name: round(megabytes / statistics.median(values[1:]), 1) for name, values in by_name.items() if values}
        for way, by_name in seconds.items()
    }
    share = {
        way: round(speed["store"] / max(value for name, value in speed.items() if name != "store"), 2)
        for way, speed in speeds.items()
    }
    return {"megabytes": megabytes, "megabytes_per_s": speeds, "share_of_the_fastest": share}


def timed(call: Callable[[Path], object], path: Path) -> float:
    """Seconds that the call takes."""
    start = time.perf_counter()
    call(path)
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 50, 175])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--endpoint", default=os.environ.get("ART_TEST_S3"))
    parser.add_argument("--directory", type=Path, help="On the disk in question; default: the temporary directory.")
    arguments = parser.parse_args()

    def run(endpoint: str) -> list[dict[str, Any]]:
        with asyncio.Runner() as runner:
            made = clients(endpoint, runner.get_loop())
            return [measure(made, each, arguments.rounds, arguments.directory) for each in arguments.megabytes]

    if arguments.endpoint:
        sizes, server = run(arguments.endpoint), "given"
    else:
        with moto() as endpoint:
            sizes, server = run(endpoint), "moto"
    print(json.dumps({"benchmark": "store_transfer", "server": server, "sizes": sizes, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
