"""A run's directory: one holder at a time, made for one base model, never half written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from art_core.config import LoRAConfig
from art_core.errors import ConfigError, RunLockedError, StoreError
from art_core.run import RunDirectory

HOLD = """
import os, sys
from pathlib import Path
from art_core.config import LoRAConfig
from art_core.run import RunDirectory
run = RunDirectory.create_or_open(Path(sys.argv[1]), "p", "r", "base", LoRAConfig())
run.stage()
if sys.argv[2] == "fork":
    here, there = os.pipe()
    if os.fork() == 0:
        os.write(there, b"!"); os.close(1); sys.stdin.read(); os._exit(0)
    os.read(here, 1)  # the fork has let go of the lock
print("held", flush=True)
sys.stdin.read()
"""


def open_run(root: Path, lora: LoRAConfig | None = None, base_model: str = "base") -> RunDirectory:
    return RunDirectory.create_or_open(root, project="p", run="r", base_model=base_model, lora=lora or LoRAConfig())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return open_run(tmp_path / "art")


def test_layout_and_identity(run: RunDirectory, tmp_path: Path) -> None:
    assert run.path == tmp_path / "art" / "p" / "models" / "r"
    assert run.name == "r"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "lock",
        "logs",
        "run.json",
        "trajectories",
    ]
    record = run.record()
    assert (record.project, record.run, record.base_model, record.lora) == ("p", "r", "base", LoRAConfig())
    assert run.step_directory(7) == run.checkpoints / "0007"
    assert run.step_directory(12345).name == "12345"


def test_resume_keeps_the_record(run: RunDirectory, tmp_path: Path) -> None:
    before = (run.path / "run.json").read_bytes()
    run.close()
    run.close()
    again = open_run(tmp_path / "art", replace(LoRAConfig(), random_state=1))
    assert (again.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("lora", "base_model", "message"),
    [
        (LoRAConfig(), "other", "base model 'base', not 'other'"),
        (LoRAConfig(rank=16), "base", "LoRA rank 8, not 16"),
        (LoRAConfig(alpha=32), "base", r"LoRA alpha 16.0, not 32"),
        (LoRAConfig(target_modules=["q_proj"]), "base", r"LoRA target modules None, not \['q_proj'\]"),
    ],
)
def test_another_base_or_shape_is_refused_and_the_lock_let_go(
    run: RunDirectory, tmp_path: Path, lora: LoRAConfig, base_model: str, message: str
) -> None:
    run.step_directory(0).mkdir()
    run.close()
    with pytest.raises(ConfigError, match=message):
        open_run(tmp_path / "art", lora, base_model)
    open_run(tmp_path / "art").close()


def test_a_run_without_a_step_may_be_made_for_something_else(run: RunDirectory, tmp_path: Path) -> None:
    """The program that was refused for a wrong target module is mended, and started again under the same name."""
    (run.checkpoints / ".damaged-0000-x").mkdir()
    run.close()
    other = LoRAConfig(rank=4, target_modules=["q_proj"])
    again = open_run(tmp_path / "art", other, "other")
    assert (again.record().base_model, again.record().lora) == ("other", other)


def test_the_order_of_target_modules_is_no_difference(tmp_path: Path) -> None:
    open_run(tmp_path, LoRAConfig(target_modules=["q", "k"])).close()
    open_run(tmp_path, LoRAConfig(target_modules=("k", "q"))).close()


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "/a", "a\\b", "a\0b", "x" * 256])
def test_names_must_be_plain(tmp_path: Path, name: str) -> None:
    for names in ({"project": name, "run": "r"}, {"project": "p", "run": name}):
        with pytest.raises(ConfigError, match=re.escape(f"name is {name!r}; allowed")):
            RunDirectory.create_or_open(tmp_path, **names, base_model="base", lora=LoRAConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "p").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="through a link"):
        open_run(tmp_path / "art")


def test_the_root_may_be_a_link_and_lie_behind_one(tmp_path: Path) -> None:
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "art").symlink_to(tmp_path / "disk" / "big")
    for root in (tmp_path / "home" / "art", tmp_path / "home" / "new"):
        run = open_run(root)
        run.write_state({"step": 1})
        run.append_history({"step": 1})
        run.close()
    assert (tmp_path / "disk" / "big" / "p" / "models" / "r" / "run.json").is_file()


def test_the_same_process_can_not_hold_it_twice(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(
        RunLockedError, match=f"held by process {os.getpid()} on .* since 20.*, which is this one: close"
    ):
        open_run(tmp_path / "art")
    run.close()
    open_run(tmp_path / "art").close()


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_the_lock_dies_with_its_process(tmp_path: Path, how: str) -> None:
    """Also where a fork without exec of it lives on; what it had staged is swept by the next holder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"process {holder.pid} on .*; end that process"):
        open_run(tmp_path)
    left = [path.name for path in RunDirectory(tmp_path / "p/models/r").checkpoints.iterdir()]
    assert [name.split("-")[0] for name in left] == [".staging"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run = open_run(tmp_path)
    assert list(run.checkpoints.iterdir()) == []
    run.close()
    holder.stdin.close()
    holder.stdout.close()


def test_what_a_dead_process_was_replacing_is_swept(run: RunDirectory, tmp_path: Path) -> None:
    run.write_state({"step": 1})
    (run.path / "trajectories" / "train").mkdir()
    litter = [run.path / ".state.json.new", run.path / "trajectories" / "train" / ".0001.parquet.new"]
    for file in litter:
        file.write_bytes(b"torn")
    run.close()
    run = open_run(tmp_path / "art")
    assert not any(file.exists() for file in litter)
    assert run.read_state() == {"step": 1}


def test_state_is_replaced_whole(run: RunDirectory) -> None:
    assert run.read_state() == {}
    run.write_state({"step": 1, "é": [1.5, None]})
    run.write_state({"step": 2})
    assert RunDirectory(run.path).read_state() == {"step": 2}
    (run.path / "state.json").write_text("{")
    with pytest.raises(StoreError, match=r"state.json line 1 is damaged"):
        run.read_state()


def test_history_is_appended(run: RunDirectory) -> None:
    assert run.history() == []
    lines = [{"step": n, "text": "a\nb é"} for n in range(3)]
    for line in lines:
        run.append_history(line)
    assert run.history() == lines


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_is_left_out_and_repaired(run: RunDirectory, cut: int) -> None:
    run.append_history({"step": 1})
    run.append_history({"step": 2, "x": "y"})
    path = run.path / "history.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    assert run.history() == [{"step": 1}]
    run.append_history({"step": 3})
    assert run.history() == [{"step": 1}, {"step": 3}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("line", [b"[1]", b"7", b"[" * 100_000])
def test_a_line_that_is_no_object_is_named(run: RunDirectory, line: bytes) -> None:
    (run.path / "history.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(StoreError, match=r"history.jsonl line 2 is damaged"):
        run.history()


@pytest.mark.parametrize("name", ["run.json", "state.json", "history.jsonl"])
def test_a_pipe_or_a_link_in_a_files_place_is_refused_and_not_waited_for(
    run: RunDirectory, tmp_path: Path, name: str
) -> None:
    read = {"run.json": run.record, "state.json": run.read_state, "history.jsonl": run.history}[name]
    path = run.path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(StoreError, match=f"{name}: it is not a regular file"):
        read()
    path.unlink()
    (tmp_path / "outside").write_text("{}")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=name):
        read()


def test_a_damaged_line_is_named(run: RunDirectory) -> None:
    for step in range(3):
        run.append_history({"step": step})
    path = run.path / "history.jsonl"
    path.write_text(path.read_text().replace('{"step": 1}', '{"step"'))
    with pytest.raises(StoreError, match=r"history.jsonl line 2 is damaged"):
        run.history()


def test_a_damaged_record_is_named(run: RunDirectory, tmp_path: Path) -> None:
    run.close()
    (run.path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"run.json is damaged"):
        open_run(tmp_path / "art")


def test_a_file_in_the_way_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("")
    with pytest.raises(StoreError, match=r"can't open run 'r': .*/p"):
        open_run(tmp_path)
