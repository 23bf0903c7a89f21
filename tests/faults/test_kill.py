"""Random kills of whole lives (`campaign`). ``ART_KILL_SEED`` chooses others; the seed and the figures are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SEED = "20261125"


def campaign(capsys: pytest.CaptureFixture[str], parts: str, kills: int, seed: str | None) -> None:
    figures = figures_of(capsys, ["tests.faults.campaign", "--parts", parts, "--kills", str(kills)], seed)
    assert figures["kills"] == kills
    assert figures["kinds"] > 20 and figures["steps"] > kills / 2


def figures_of(capsys: pytest.CaptureFixture[str], module: list[str], seed: str | None) -> dict[str, Any]:
    """Run a campaign to its end and print what it says; its last line."""
    command = [sys.executable, "-m", *module]
    if seed := os.environ.get("ART_KILL_SEED", seed):
        command += ["--seed", seed]
    # a fork copies no pool of threads, so there must be none
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    with capsys.disabled():
        print(f"\n{done.stdout}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


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


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_250_kills_over_every_store(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, ["tests.faults.store_campaign", "--kills", "250"], None)
    assert figures["kills"] == sum(figures["kills_by_kind"].values()) == 250
    assert {kind.split()[0] for kind in figures["kills_by_kind"]} == {"file", "fsspec", "s3"}
    assert {kind.split()[1] for kind in figures["kills_by_kind"]} == {"commit", "replicate", "delete", "drop", "sweep"}
