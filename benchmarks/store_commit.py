"""How long a commit takes beside ``cp`` and fsync of the same bytes.

``local`` is what every step pays: the files that a trainer has just written are hashed once while they are forced to
the disk, described and renamed. ``copy`` is a copy by the file store into a run that it knows: written, hashed while it
is forced to the disk, renamed.
``cp`` copies the same files and forces them and their directory to the disk, and hashes nothing. Rounds take turns;
sources are on the disk before ``cp`` and ``copy`` begin, and freshly written before ``local`` begins. Hashing takes a
core, so a busy machine makes the ratios worse. Not measured: what a power failure would keep.

    python benchmarks/store_commit.py [--megabytes 10 175] [--rounds 7] [--directory DIR]

The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from art_core import disk
from art_core.base_model import BaseIdentity
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER, Checkpoint, write_manifest
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.run_key import RunKey

BASE = BaseIdentity(name="bench", digest="0" * 64)
KEY = RunKey("bench", "run")


def write_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files as a trainer does, not forced to the disk."""
    for name, data in contents.items():
        (directory / name).write_bytes(data)


def describe(directory: Path, step: int) -> Checkpoint:
    """Hash the files and write the manifest."""
    return write_manifest(directory, run=KEY.run, step=step, base_model=BASE)


def timed_cp(source: Path, target: Path) -> float:
    """Copy a directory's files and force them to the disk."""
    start = time.perf_counter()
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        disk.sync(target / path.name)
    disk.sync(target)
    return time.perf_counter() - start


def measure(root: Path, megabytes: int, rounds: int, loop: asyncio.AbstractEventLoop) -> dict[str, object]:
    """Median seconds of each, and their ratio to ``cp``; the first round warms up."""
    adapter = megabytes * 1_000_000 // 3  # the optimizer's two moments are twice the adapter
    contents = {ADAPTER: os.urandom(adapter), ADAPTER_CONFIG: b"{}", OPTIMIZER: os.urandom(2 * adapter)}
    run, copies = RunDirectory(root / "bench" / "models" / "run"), FileStore(root / "copies")
    seconds: dict[str, list[float]] = {"cp": [], "local": [], "copy": []}
    for step in range(rounds + 1):
        staged = run.stage()
        write_files(staged, contents)
        start = time.perf_counter()
        stored = loop.run_until_complete(LocalStore().commit(run.path, describe(staged, step)))
        seconds["local"].append(time.perf_counter() - start)
        seconds["cp"].append(timed_cp(stored.directory, root / f"cp-{step}"))
        start = time.perf_counter()
        loop.run_until_complete(copies.commit(KEY, Checkpoint(stored.directory, stored.manifest)))
        seconds["copy"].append(time.perf_counter() - start)
        for path in (stored.directory, root / f"cp-{step}", *(root / "copies").glob("*/models/*/checkpoints/*")):
            shutil.rmtree(path)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "megabytes": megabytes,
        "median_ms": {name: round(1000 * value, 1) for name, value in medians.items()},
        "local_to_cp": round(medians["local"] / medians["cp"], 2),
        "copy_to_cp": round(medians["copy"] / medians["cp"], 2),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 175])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, help="On the disk in question; default: the temporary directory.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as root, asyncio.Runner() as runner:
        loop = runner.get_loop()
        sizes = [measure(Path(root), each, arguments.rounds, loop) for each in arguments.megabytes]
    print(json.dumps({"benchmark": "store_commit", "sizes": sizes, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
