"""Random kills of whole lives (`campaign`). ``ART_KILL_SEED`` chooses others; the seed and the figures are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEED = "20261125"


def campaign(capsys: pytest.CaptureFixture[str], parts: str, kills: int, seed: str | None) -> None:
    command = [sys.executable, "-m", "tests.faults.campaign", "--parts", parts, "--kills", str(kills)]
    if seed := os.environ.get("ART_KILL_SEED", seed):
        command += ["--seed", seed]
    # a fork copies no pool of threads, so there must be none
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    with capsys.disabled():
        print(f"\n{done.stdout}")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == kills
    assert figures["kinds"] > 20 and figures["steps"] > kills / 2


def test_150_kills(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(capsys, "small", 150, SEED)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_1000_kills(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(capsys, "small", 1000, None)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_300_kills_while_steps_are_copied(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(capsys, "copying", 300, None)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_40_kills_of_client_engine_and_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(capsys, "torch", 40, None)
