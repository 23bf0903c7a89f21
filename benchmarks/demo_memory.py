"""How much memory and time `art demo` takes: the client, the engine and the trainer together.

Runs the demo as a child process and samples the proportional set size (PSS) of its whole process tree, so that pages
which processes share count once. Left out: page cache that no process maps, and anything shorter than the sampling
interval. Linux only: it reads ``/proc/<pid>/smaps_rollup``. The first run on a machine also fetches and converts the
base model; run it twice, or `art model` before, to measure training alone.

    python benchmarks/demo_memory.py [--steps 3] [--base-model NAME] [--engine NAME] [--trainer NAME]

The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INTERVAL_S = 0.2


def process_tree(root: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything; the parent is the second field after it.
            parents[int(directory.name)] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we were looking
    tree = [root]
    for pid in tree:
        tree.extend(child for child, parent in parents.items() if parent == pid)
    return tree


def pss_bytes(pid: int) -> int:
    """Proportional set size; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def title(pid: int) -> str:
    """What a process is, in a few words of its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    return " ".join(Path(word).name for word in words[1:4] if word)[:60]


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the demo and watch it."""
    options = [f"--{key.replace('_', '-')}={value}" for key, value in vars(arguments).items() if value is not None]
    peak: dict[str, int] = {}
    samples = 0
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        command = [sys.executable, "-c", "from art_core.cli import main; main()", "demo", "--path", root, *options]
        with subprocess.Popen(command, stdout=sys.stderr) as child:
            while child.poll() is None:
                sizes = {f"{title(pid)} ({pid})": pss_bytes(pid) for pid in process_tree(child.pid)}
                samples += 1
                if sum(sizes.values()) > sum(peak.values()):
                    peak = sizes
                try:
                    child.wait(INTERVAL_S)
                except subprocess.TimeoutExpired:
                    continue
        wall_s = time.perf_counter() - start
        history = [json.loads(line) for line in next(Path(root).rglob("history.jsonl")).read_text().splitlines()]
    if child.returncode != 0:
        raise SystemExit(f"the demo ended with {child.returncode}; its messages are above")
    return {
        "benchmark": "demo_memory",
        "base_model": arguments.base_model or "the demo's own",
        "steps": len(history),
        "wall_s": round(wall_s, 1),
        "peak_pss_bytes": sum(peak.values()),
        "peak_pss_bytes_by_process": peak,
        "rewards": [round(record["train/reward"], 3) for record in history],
        "samples": samples,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--base-model")
    parser.add_argument("--engine")
    parser.add_argument("--trainer")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
