"""The benchmarks that need no model run, however small; what they measure is for people, on an idle machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "command",
    [
        "store_commit.py --megabytes 1 --rounds 1",
        "store_transfer.py --megabytes 1 --rounds 1",
        "gateway.py --requests 2 --rounds 1",
        "import_time.py --runs 1",
    ],
)
def test_it_runs_and_ends_with_one_document(command: str, tmp_path: Path) -> None:
    name, *options = command.split()
    command_line = [sys.executable, BENCHMARKS / name, *options]
    run = subprocess.run(command_line, capture_output=True, cwd=tmp_path, timeout=300, check=False)
    assert run.returncode == 0, run.stderr.decode()[-2000:]
    assert json.loads(run.stdout.splitlines()[-1])["benchmark"] == name.removesuffix(".py")
    assert list(tmp_path.iterdir()) == [], "it leaves nothing"
