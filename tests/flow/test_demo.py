"""`art demo` as a user runs it: real engine, real trainer, a tiny random model that learns nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ART = [str(Path(sys.executable).with_name("art")), "demo", "--engine", "torch", "--trainer", "torch"]


def test_an_interrupted_demo_is_resumed_where_it_was_committed(tiny_model: Path, tmp_path: Path) -> None:
    command = [*ART, "--base-model", str(tiny_model), "--path", str(tmp_path), "--steps", "500", "--seed", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = []
        for line in child.stdout:
            seen.append(line)
            if sum(each.startswith("reward") for each in seen) == 2:
                break
        assert child.poll() is None, "".join(seen)
        family = psutil.Process(child.pid).children(recursive=True)
        assert len(family) >= 2, "engine and trainer are processes of their own"
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate(timeout=240)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert psutil.wait_procs(family, 240)[1] == []
    hint = re.search(r"to go on: art demo --path (\S+)", rest)
    assert hint is not None, rest

    run = tmp_path / "demo" / "models" / "json-facts"
    before = json.loads((run / "state.json").read_text())["demo"]["before"]
    committed = len(list((run / "checkpoints").glob("[0-9]*")))
    done = subprocess.run(
        [*ART, "--path", hint[1], "--steps", "1"], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    newest = int(re.findall(r"served json-facts@(\d+)", done.stdout)[-1])
    assert newest == committed
    assert json.loads((run / "state.json").read_text())["demo"]["before"] == before
    steps = [json.loads(line)["step"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert steps[:2] == [1, 2]
    assert steps[-1] == newest
    report = (run / "report.html").read_text()
    assert all(f'<td class="number">{step}</td>' in report for step in steps)
    assert f"report: {run / 'report.html'}" in done.stdout
