"""How fast the S3 store carries bytes beside other clients, in one run against one server.

``store`` is what the store does with a file of a checkpoint: up, in parts where it is large, and hashed; down, hashed
on the way. The others hash nothing: obstore by itself, boto3's transfer manager, and s3fs where it is installed. Rounds
take turns. Without ``--endpoint`` the server is moto's, in a process of its own; on loopback the server is the
bottleneck, so only ratios mean something, and nothing is said about a network.

    python benchmarks/store_transfer.py [--megabytes 10 50] [--rounds 7] [--endpoint URL]

With ``--endpoint`` the AWS chain gives the credentials (``python -m tests.servers.rgw`` starts Ceph's RGW and sets
them). The last line of output is one JSON document.
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

from art_core.file_record import record

BUCKET = "art-bench"
Client = tuple[Callable[[Path], object], Callable[[Path], object]]
"""Puts a file up; gets it down into a path."""


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


def clients(endpoint: str) -> dict[str, Client]:
    """Every client by name."""
    options = S3StoreOptions(bucket=BUCKET, endpoint_url=endpoint)
    ours = S3Bucket(options)
    config = botocore.config.Config(s3={"addressing_style": "path"})
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
    if BUCKET not in [each["Name"] for each in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET)

    async def store_up(path: Path) -> None:
        await asyncio.gather(asyncio.to_thread(record, path), ours.upload("store", path))

    async def store_down(path: Path) -> None:
        await ours.download("store", path, 1 << 40)

    async def raw_down(path: Path) -> None:
        found = await obstore.get_async(ours._store, "raw")
        with path.open("wb") as file:
            async for piece in found.stream(4 << 20):
                file.write(piece)

    made: dict[str, Client] = {
        "store": (lambda path: asyncio.run(store_up(path)), lambda path: asyncio.run(store_down(path))),
        "obstore": (lambda path: obstore.put(ours._store, "raw", path), lambda path: asyncio.run(raw_down(path))),
        "boto3": (
            lambda path: s3.upload_file(str(path), BUCKET, "boto3"),
            lambda path: s3.download_file(BUCKET, "boto3", str(path)),
        ),
    }
    if find_spec("s3fs"):
        import s3fs

        keys = {"key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}
        fs = s3fs.S3FileSystem(**keys, endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
        made["s3fs"] = (
            lambda path: fs.put_file(str(path), f"{BUCKET}/s3fs"),
            lambda path: fs.get_file(f"{BUCKET}/s3fs", str(path)),
        )
    return made


def measure(made: dict[str, Client], megabytes: int, rounds: int) -> dict[str, Any]:
    """Median MB/s of every client, and the store's share of the fastest other's; the first round warms up."""
    seconds: dict[str, dict[str, list[float]]] = {way: {name: [] for name in made} for way in ("up", "down")}
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "source", Path(directory) / "target"
        source.write_bytes(os.urandom(megabytes * 1_000_000))
        for _ in range(rounds + 1):
            for name, (up, down) in made.items():
                for way, call, path in (("up", up, source), ("down", down, target)):
                    target.unlink(missing_ok=True)
                    start = time.perf_counter()
                    call(path)
                    seconds[way][name].append(time.perf_counter() - start)
    speeds = {
        way: {name: round(megabytes / statistics.median(values[1:]), 1) for name, values in by_name.items()}
        for way, by_name in seconds.items()
    }
    share = {
        way: round(speed["store"] / max(value for name, value in speed.items() if name != "store"), 2)
        for way, speed in speeds.items()
    }
    return {"megabytes": megabytes, "megabytes_per_s": speeds, "share_of_the_fastest": share}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--endpoint", default=os.environ.get("ART_TEST_S3"))
    arguments = parser.parse_args()

    def run(endpoint: str) -> list[dict[str, Any]]:
        made = clients(endpoint)
        return [measure(made, each, arguments.rounds) for each in arguments.megabytes]

    if arguments.endpoint:
        sizes, server = run(arguments.endpoint), "given"
    else:
        with moto() as endpoint:
            sizes, server = run(endpoint), "moto"
    print(json.dumps({"benchmark": "store_transfer", "server": server, "sizes": sizes, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
