"""A foreign command under guard: its output and status come through, and it does not outlive who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from art_core.guard import guarded
from art_core.process import Child
from art_core.testing.condition import LONGEST_S, until

OWNER = """
import sys
from art_core.guard import guarded
with guarded(sys.argv[1:], {}) as process:
    print(process.stdout.readline().strip(), flush=True)
    process.wait()
"""
TWO_PROCESSES = ["/bin/sh", "-c", "sleep 1000 & echo $$ $!; wait"]


def test_output_status_and_variables_come_through() -> None:
    with guarded(["/bin/sh", "-c", 'echo "$GREETING"; echo aside >&2; exit 7'], {"GREETING": "hello"}) as process:
        assert process.stdout is not None
        assert sorted(process.stdout.read().split()) == ["aside", "hello"]
        assert process.wait() == 7


def test_a_command_that_is_not_there_says_so() -> None:
    with guarded(["/no/such/command"], {}) as process:
        assert process.stdout is not None
        assert "/no/such/command can't be started: " in process.stdout.read()
        assert process.wait() == 1


def test_what_still_runs_at_the_blocks_end_is_ended() -> None:
    with guarded(TWO_PROCESSES, {}) as process:
        assert process.stdout is not None
        processes = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    assert psutil.wait_procs(processes, LONGEST_S)[1] == []


def test_an_owner_killed_with_9_leaves_nothing() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *TWO_PROCESSES], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    processes = [psutil.Process(int(word)) for word in owner.stdout.readline().split()]
    processes += psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert psutil.wait_procs(processes, LONGEST_S)[1] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_answers_a_signal_in_its_own_way(number: signal.Signals, tmp_path: Path) -> None:
    """As `Child.stop` sends it: to the whole group."""
    trap = f"trap 'echo farewell; exit 5' {number.value}; echo ready; while :; do sleep 0.01; done"
    command = [sys.executable, "-P", "-m", "art_core.guard", "/bin/sh", "-c", trap]
    child = await Child.launch(command, log_path=tmp_path / "log")
    await until(lambda: "ready" in (tmp_path / "log").read_text(), "the command runs")
    os.killpg(child.pid, number)
    assert await child.exited() == 5
    assert "farewell" in (tmp_path / "log").read_text().split()
