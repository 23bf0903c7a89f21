"""``art checkpoints``: on real stored steps, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER, read_manifest
from art_core.cli.program import app
from art_core.config import LoRAConfig
from art_core.errors import ConfigError, StoreError
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from tests.staged import stage_step


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """Two runs of two projects, three steps each; the first is held by this process, as one that goes on training."""
    root = tmp_path / "root"
    for project, name in (("p", "one"), ("q", "two")):
        run = RunDirectory.create_or_open(root, project, name, "tiny", LoRAConfig())
        for step in range(3):
            await LocalStore().commit(run.path, stage_step(run.path, step))
        run.append_history({"training_step": 2, "train/reward": 0.625})
        run.append_history({"training_step": 2, "val/reward": 0.1})
        run.stage()  # what a step in the making looks like
        if name == "two":
            run.close()
    return root


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["checkpoints", *arguments])


def rows(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json").stdout)
    return found


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


def test_a_root_a_run_and_its_checkpoints_are_all_understood(root: Path) -> None:
    one = root / "p" / "models" / "one"
    for path, runs in (
        (root, {"p/one", "q/two"}),
        (one, {"p/one"}),
        (one / "checkpoints", {"p/one"}),
        (root.parent, {"p/one", "q/two"}),
    ):
        found = rows("list", "--path", str(path))
        assert {each["run"] for each in found} == runs
        assert [each["step"] for each in found] == [0, 1, 2] * len(runs)


def test_list_says_what_the_manifests_say_and_touches_nothing(root: Path) -> None:
    before = snapshot(root)
    first, _, last = rows("list", "--path", str(root / "p" / "models" / "one"))
    manifest = read_manifest(Path(last["directory"]))
    assert last["adapter_digest"] == manifest.adapter_digest
    assert last["size_bytes"] == sum(file.size_bytes for file in manifest.files.values())
    assert (first["parent"], last["parent"]) == (None, 1)
    assert (first["reward"], last["reward"]) == (None, 0.625)
    assert last["updated"] is True
    lines = run("list", "--path", str(root)).stdout.splitlines()
    (line,) = (line for line in lines if line.split()[:2] == ["q/two", "0002"])
    size = f"{last['size_bytes'] / 1e3:.1f}"
    assert line.split()[2:] == [size, "kB", manifest.adapter_digest[:12], "yes", "1", "0.625", "-", "yes"]
    assert run("verify", "--path", str(root)).exit_code == 0
    assert snapshot(root) == before


def test_verify_reads_every_byte(root: Path) -> None:
    whole = run("verify", "--path", str(root))
    assert whole.exit_code == 0
    assert [line.split(" ok:")[0] for line in whole.stdout.splitlines()] == [
        f"{run} 000{step}" for run in ("p/one", "q/two") for step in range(3)
    ]
    path = root / "q" / "models" / "two" / "checkpoints" / "0001" / OPTIMIZER
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert all(each["problem"] is None for each in rows("list", "--path", str(root))), "list reads no bytes"
    damaged = run("verify", "--path", str(root))
    assert damaged.exit_code == 1
    (line,) = (line for line in damaged.stdout.splitlines() if "FAILED" in line)
    assert line.startswith("q/two 0001 FAILED: ") and OPTIMIZER in line and "sha256" in line
    assert damaged.stdout.count(" ok: ") == 5
    problems = {each["step"]: each["problem"] for each in rows("verify", "--path", str(path.parents[2]))}
    assert problems[0] is problems[2] is None and OPTIMIZER in problems[1]


async def test_what_was_dropped_is_told_and_not_counted(root: Path) -> None:
    run_path = root / "p" / "models" / "one"
    await LocalStore().drop_optimizer(run_path, [1])
    whole, dropped = rows("list", "--path", str(run_path))[:2]
    assert (whole["dropped"], dropped["dropped"]) == ([], [OPTIMIZER])
    manifest = read_manifest(run_path / "checkpoints/0001")
    left = sum(file.size_bytes for file in manifest.files.values()) - manifest.files[OPTIMIZER].size_bytes
    assert dropped["size_bytes"] == left < whole["size_bytes"]
    seen = rows("verify", "--path", str(run_path))[1]
    assert (seen["files"], seen["size_bytes"], seen["problem"]) == (len(manifest.files) - 1, left, None)
    (line,) = (line for line in run("list", "--path", str(root)).stdout.splitlines() if OPTIMIZER in line)
    assert line.split()[:2] == ["p/one", "0001"] and line.split()[-2:] == [OPTIMIZER, "yes"]


def test_every_kind_of_damage_is_named(root: Path) -> None:
    checkpoints = root / "p" / "models" / "one" / "checkpoints"
    (checkpoints / "0000" / ADAPTER).unlink()
    (checkpoints / "0001" / MANIFEST).write_text("{}")
    shutil.copytree(checkpoints / "0002", checkpoints / "0009")
    (checkpoints / "0010").symlink_to(checkpoints / "0002")
    (checkpoints / "0011").write_text("no directory")
    (checkpoints / "0002" / "extra.json").write_text("{}")
    expected = {
        "0000": f"{ADAPTER} is missing",
        "0001": f"{MANIFEST} is not as it should be",
        "0002": "extra.json is not in the manifest",
        "0009": "holds the manifest of step 2",
        "0010": "is a file or a link",
        "0011": "is a file or a link",
        "latest": "is a file or a link",
    }
    (checkpoints / "latest").symlink_to(checkpoints / "0002")
    for command in ("list", "verify"):
        found = rows(command, "--path", str(checkpoints))
        assert [each["step"] for each in found] == [0, 1, 2, 9, 10, 11, None]
        seen = {Path(each["directory"]).name: each["problem"] for each in found}
        assert seen.keys() == expected.keys()
        assert {step: text in seen[step] for step, text in expected.items()} == dict.fromkeys(expected, True)
    assert run("verify", "--path", str(checkpoints)).exit_code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_step_that_can_not_be_read_is_no_verified_one(root: Path) -> None:
    checkpoints = root / "p" / "models" / "one" / "checkpoints"
    (checkpoints / "0001" / ADAPTER).chmod(0)
    done = run("verify", "--path", str(checkpoints))
    assert done.exit_code == 1
    assert "0001 FAILED: can't read a checkpoint" in done.stdout


def test_a_path_without_runs(tmp_path: Path) -> None:
    for command in ("list", "verify"):
        done = run(command, "--path", str(tmp_path))
        assert isinstance(done.exception, ConfigError)
        assert f"there is no run in {tmp_path}; give --path a root" in str(done.exception)


def test_a_path_that_the_system_refuses() -> None:
    done = run("list", "--path", "x" * 300)
    assert isinstance(done.exception, StoreError) and "File name too long" in str(done.exception)


def test_a_run_without_steps(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    done = run("verify", "--path", str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, f"no checkpoint in {tmp_path}\n")
