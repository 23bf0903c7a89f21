"""Metrics and trajectories in W&B: one run for each run, whatever process logs; and the process that talks to W&B."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from art_wandb import process
from art_wandb.process import WANDB

import art
from art.local import LocalBackend
from art_core.testing.condition import LONGEST_S
from tests.art_core.rollout import group
from tests.servers.wandb import WandbServer


async def log(root: Path, name: str, steps: range, **options: object) -> None:
    """A program that logs and ends."""
    model = art.Model(name=name, project="observed", report_metrics=["wandb"], **options)  # type: ignore[arg-type]
    async with LocalBackend(path=root) as backend:
        await model.register(backend)
        model.update_wandb_config({"seed": 3})
        for step in steps:
            await model.log([group(1.0, 0.0)], split="train", step=step, metrics={"loss/train": 1.0 / (step + 1)})


async def test_two_programs_make_one_run(server: WandbServer, tmp_path: Path) -> None:
    await log(tmp_path, "agent", range(2))
    run = server.record.runs["observed", "agent"]
    assert run.state == "finished"
    await log(tmp_path, "agent", range(2, 3))
    assert [name for project, name in server.record.runs if project == "observed"] == ["agent"]
    assert [(line["training_step"], line["train/reward"]) for line in run.history] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert run.history[2]["loss/train"] == pytest.approx(1 / 3)
    assert run.config["seed"]["value"] == 3
    local = tmp_path / "observed/models/agent/trajectories/train"
    for path in local.iterdir():
        assert run.files[f"trajectories/train/{path.name}"] == path.read_bytes()


async def test_what_does_not_ask_is_not_told(server: WandbServer, tmp_path: Path) -> None:
    model = art.Model(name="silent", project="observed")
    async with LocalBackend(path=tmp_path, store="wandb", publisher=["reload", "wandb"]) as backend:
        await model.register(backend)
        await model.log([group(1.0)], step=1)
    assert ("observed", "silent") not in server.record.runs


async def test_a_server_that_fails_stops_nothing(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = lambda method, asked: 403
    await log(tmp_path, "refused", range(1))
    assert "observer art_on_log of plugin 'wandb' failed" in caplog.text
    assert (tmp_path / "observed/models/refused/history.jsonl").read_text().count("\n") == 1


PROGRAM = """
import asyncio, os, sys
import art
from art.local import LocalBackend
from art_core.testing.condition import LONGEST_S

async def main():
    model = art.Model(name=sys.argv[2], project="observed", report_metrics=["wandb"])
    await model.register(LocalBackend(path=sys.argv[1]))
    await model.log(metrics={"loss/train": 1.0}, step=5, split="train")
    print("logged", flush=True)
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), 9)
    assert "wandb" not in sys.modules

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["ended", "killed"])
async def test_no_process_survives_a_program(server: WandbServer, tmp_path: Path, end: str) -> None:
    environment = {**os.environ, "ART_TEST_PROGRAM": str(tmp_path)}  # which all that it starts inherits
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), end, end]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    assert ended.stdout == "logged\n", ended.stderr
    every = psutil.process_iter(["environ"])
    left = [each for each in every if (each.info["environ"] or {}).get("ART_TEST_PROGRAM") == str(tmp_path)]
    assert psutil.wait_procs(left, timeout=LONGEST_S)[1] == []
    run = server.record.runs["observed", end]
    if end == "ended":
        assert [line["training_step"] for line in run.history] == [5], "what was logged is sent before the end"
        assert run.state == "finished"


def test_the_process_ends_by_itself_for_want_of_work(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    WANDB.close()
    monkeypatch.setattr(process, "IDLE_S", 0.2)
    assert WANDB.call_here("now", LONGEST_S, {}) == pytest.approx(time.time(), abs=LONGEST_S)
    connection = WANDB._connection
    assert connection is not None
    assert connection._gone.wait(LONGEST_S)
    assert not connection._directory.exists()
    assert WANDB.call_here("now", LONGEST_S, {}) == pytest.approx(time.time(), abs=LONGEST_S), (
        "the next call begins another"
    )
    WANDB.close()
