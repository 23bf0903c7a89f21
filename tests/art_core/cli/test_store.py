"""``art checkpoints`` between this machine and a store; the store is the file one, on another directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER, verify
from art_core.cli.program import app
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError, RunLockedError, StoreError
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.run_key import RunKey
from art_core.transfer import pull
from tests.staged import stage_step, write_step_files


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A root with run ``p/r``, five steps; nobody trains it."""
    run = RunDirectory.create_or_open(tmp_path / "root", "p", "r", "tiny", LoRAConfig())
    for step in range(5):
        await LocalStore().commit(run.path, stage_step(run.path, step))
        run.append_history({"training_step": step, "val/reward": -abs(step - 1)})
    run.close()
    return tmp_path / "root"


def run(root: Path, command: str, *arguments: str) -> Result:
    path = () if "--store" in arguments and command in ("list", "verify") else ("--path", str(root))
    return CliRunner().invoke(app, ["checkpoints", command, *arguments, *path], catch_exceptions=True)


def data(root: Path, command: str, *arguments: str) -> Any:
    done = run(root, command, *arguments, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return json.loads(done.stdout)


def steps(root: Path) -> list[int]:
    return sorted(int(path.name) for path in (root / "p/models/r/checkpoints").iterdir())


def test_push_list_verify_show_and_pull(root: Path, tmp_path: Path) -> None:
    store = ("--store", (tmp_path / "store").as_uri())
    assert data(root, "push", "--run", "p/r", *store, "--step", "1", "--step", "3") == {"copied": [1, 3]}
    assert data(root, "push", "--run", "p/r", *store) == {"copied": [0, 2, 4]}
    assert "nothing, the store holds them already" in run(root, "push", "--run", "p/r", *store).stdout
    assert [each["step"] for each in data(root, "list", *store)] == [0, 1, 2, 3, 4]
    assert run(root, "verify", *store).stdout.count(" ok: ") == 5
    shown = data(root, "show", "3", "--run", "p/r", *store)
    assert shown == data(root, "show", "3", "--run", "p/r")
    assert (shown["manifest"]["step"], shown["dropped"]) == (3, [])
    assert "trained from" in run(root, "show", "3", "--run", "p/r").stdout

    for arguments, step in (((), 4), (("--step", "2"), 2)):
        done = data(tmp_path / "fresh", "pull", "--run", "p/r", *store, *arguments)
        assert Path(done["directory"]) == tmp_path / "fresh" / "p/models/r/checkpoints" / f"{step:04d}"
        assert verify(Path(done["directory"])).step == step
    copy = data(root, "pull", "--run", "p/r", *store, "--to", str(tmp_path / "copy"))
    assert verify(Path(copy["directory"])).step == 4
    again = run(root, "pull", "--run", "p/r", *store, "--to", str(tmp_path / "copy"))
    assert "is not empty" in str(again.exception) and verify(tmp_path / "copy").step == 4
    missing = run(root, "pull", "--run", "p/r", *store, "--step", "9")
    assert isinstance(missing.exception, CheckpointNotFoundError)
    assert "no step 9 of run p/r; its steps: 0, 1, 2, 3, 4" in str(missing.exception)


def test_what_is_not_there_is_named_with_the_nearest_that_is(root: Path, tmp_path: Path) -> None:
    """A misspelt run must not look like one that is empty, least of all like one that was verified."""
    store = ("--store", (tmp_path / "store").as_uri())
    run(root, "push", "--run", "p/r", *store)
    here = f"there is no run 'p/R' in {root}; did you mean 'p/r'? known: p/r"
    there = "the store has no checkpoint of run p/R; did you mean 'p/r'? known: p/r"
    for arguments, message in (
        (("list", "--run", "p/R"), here),
        (("verify", "--run", "p/R"), here),
        (("show", "3", "--run", "p/R"), here),
        (("push", "--run", "p/R", *store), here),
        (("delete", "--run", "p/R", "--step", "1"), here),
        (("gc", "--run", "p/R"), here),
        (("fork", "--from", "p/R@1", "--run", "p/new"), here),
        (("fork", "--from", "/nowhere", "--run", "p/new"), "/nowhere is no run's directory; give <root>/<project>"),
        (("list", "--run", "p/R", *store), there),
        (("verify", "--run", "p/R", *store), there),
        (("show", "3", "--run", "p/R", *store), there),
        (("pull", "--run", "p/R", *store), there),
        (("delete", "--run", "p/R", "--step", "1", *store), there),
        (("fork", "--from", "p/R", "--run", "p/new", *store), there),
        (("fork", "--from", "p/r@9", "--run", "p/new", *store), "no step 9 of run p/r; its steps: 0, 1, 2, 3, 4"),
        (("show", "9", "--run", "p/r"), "no step 9 of run p/r; its steps: 0, 1, 2, 3, 4"),
        (("delete", "--run", "p/r", "--step", "9"), "no step 9; its steps: 0, 1, 2, 3, 4; deleted: nothing"),
        (("delete", "--run", "p/r", "--step", "9", *store), "no step 9; its steps: 0, 1, 2, 3, 4; deleted: nothing"),
    ):
        done = run(root, *arguments)
        assert isinstance(done.exception, ConfigError | CheckpointNotFoundError), (arguments, done.output)
        assert message in str(done.exception), arguments
    assert steps(root) == [0, 1, 2, 3, 4]


def test_a_run_below_one_of_several_roots_is_found(root: Path) -> None:
    """As the demo leaves them: ``.art/demo-…/demo/models/…``."""
    assert data(root.parent, "show", "3", "--run", "p/r")["manifest"]["step"] == 3
    shutil.copytree(root, root.parent / "other")
    done = run(root.parent, "show", "3", "--run", "p/r")
    assert isinstance(done.exception, ConfigError)
    assert "stands below each of" in str(done.exception) and str(root.parent / "other") in str(done.exception)


def test_verify_finds_what_is_damaged_in_a_store(root: Path, tmp_path: Path) -> None:
    store = ("--store", (tmp_path / "store").as_uri())
    run(root, "push", "--run", "p/r", *store)
    path = tmp_path / "store/p/models/r/checkpoints/0002" / ADAPTER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run(root, "verify", *store)
    assert done.exit_code == 1
    (line,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert line.startswith("p/r 0002 FAILED: ") and ADAPTER in line


def test_a_run_of_another_backend_is_known_for_what_it_is(tmp_path: Path) -> None:
    """Nobody is advised to delete its steps, or told that nothing is to be copied; nothing is written into it."""
    theirs = tmp_path / "theirs/p/models/r"
    for step in range(3):
        directory = theirs / f"checkpoints/{step:04d}"
        directory.mkdir(parents=True)
        write_step_files(directory, step)
    (theirs / "checkpoints/0002" / ADAPTER_CONFIG).unlink()
    (theirs / "checkpoints/best").mkdir()
    before = sorted(tmp_path.rglob("*"))
    here, store = tmp_path / "theirs", ("--store", (tmp_path / "store").as_uri())
    listed = data(here, "list")
    assert [each["step"] for each in listed] == [0, 1, 2]
    for step, each in enumerate(listed):
        assert "written by openpipe-art's own backend" in each["problem"]
        assert f"art checkpoints fork --from {theirs}@{step:04d}" in each["problem"]
    assert [each["problem"] for each in data(here, "verify")] == [each["problem"] for each in listed]
    for arguments in (
        ("show", "1"),
        ("push", *store),
        ("gc", "--keep", "latest=1"),
        ("delete", "--step", "0"),
    ):
        done = run(here, *arguments, "--run", "p/r")
        assert isinstance(done.exception, ConfigError)
        assert f"stays as it is; start one of ours from it: art checkpoints fork --from {theirs}" in str(done.exception)
    for step, error, message in (
        ("@9", CheckpointNotFoundError, "has no step 9; its steps: 0, 1, 2"),
        (
            "",
            CheckpointCorruptError,
            r"step 2 of .* can't be taken over: .*name another step \(there are: 0, 1\)",
        ),
    ):
        with pytest.raises(error, match=message):
            raise run(here, "fork", "--from", f"p/r{step}", "--run", "p/new").exception or AssertionError
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["pulled", "a store's own directory"])
def test_a_run_of_checkpoints_alone_is_pruned_and_forked_like_any(root: Path, tmp_path: Path, where: str) -> None:
    """Neither has a ``run.json``, and none is made up: what it was made for a program will say."""
    run(root, "push", "--run", "p/r", "--store", (tmp_path / "store").as_uri())
    place = tmp_path / "store"
    if where == "pulled":
        place = tmp_path / "fresh"
        for step in range(5):
            store = ("--store", (tmp_path / "store").as_uri())
            assert run(place, "pull", "--run", "p/r", *store, "--step", str(step)).exit_code == 0
    assert data(place, "delete", "--run", "p/r", "--step", "0")["deleted"] == [0]
    assert data(place, "gc", "--run", "p/r", "--keep", "latest=2")["deleted"] == [1, 2]
    assert steps(place) == [3, 4] and not (place / "p/models/r/run.json").exists()
    forked = data(place, "fork", "--from", "p/r@3", "--run", "p/new")
    assert forked["manifest"]["origin"] == "p/r@3" and verify(Path(forked["directory"])).step == 3
    elsewhere = data(tmp_path / "other", "fork", "--from", str(place / "p/models/r"), "--run", "q/new")
    assert verify(Path(elsewhere["directory"])).step == 4
    holder = RunDirectory.create_or_open(place, "p", "r", "tiny", LoRAConfig())
    assert isinstance(run(place, "gc", "--run", "p/r").exception, RunLockedError)
    holder.close()


async def test_nothing_is_pulled_into_a_run_of_another_backend(tmp_path: Path) -> None:
    held = tmp_path / "store/p/models/r"
    await LocalStore().commit(held, stage_step(held, 7))
    theirs = tmp_path / "theirs/p/models/r/checkpoints"
    (theirs / "0001").mkdir(parents=True)
    write_step_files(theirs / "0001", 1)
    with pytest.raises(ConfigError, match="holds steps of openpipe-art's own backend"):
        await pull(FileStore(tmp_path / "store"), RunKey("p", "r"), None, tmp_path / "theirs")
    assert [each.name for each in theirs.iterdir()] == ["0001"]


def test_a_run_without_a_whole_step_is_not_said_to_be_copied(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "p/models/r/checkpoints")
    (root / "p/models/r/checkpoints").mkdir()
    done = run(root, "push", "--run", "p/r", "--store", (tmp_path / "store").as_uri())
    assert isinstance(done.exception, CheckpointNotFoundError) and "has no whole checkpoint" in str(done.exception)


@pytest.mark.parametrize("where", ["here", "in a store"])
def test_delete_and_gc(root: Path, tmp_path: Path, where: str) -> None:
    store = ("--store", (tmp_path / "store").as_uri()) if where == "in a store" else ()
    run(root, "push", "--run", "p/r", "--store", (tmp_path / "store").as_uri())
    place = tmp_path / "store" if store else root
    assert data(root, "delete", "--run", "p/r", *store, "--step", "0")["deleted"] == [0]
    assert isinstance(run(root, "delete", "--run", "p/r", *store, "--step", "4").exception, StoreError)
    assert steps(place) == [1, 2, 3, 4]
    rules = ("gc", "--run", "p/r", *store, "--keep", "latest=1", "--keep", "best=val/reward", "--keep", "optimizer=1")
    planned = data(root, *rules, "--dry-run")
    assert (planned["deleted"], planned["optimizer_dropped"], steps(place)) == ([2, 3], [1], [1, 2, 3, 4])
    done = data(root, *rules)
    assert (done["deleted"], done["optimizer_dropped"], done["dry_run"]) == ([2, 3], [1], False)
    assert steps(place) == [1, 4]
    assert not (place / "p/models/r/checkpoints/0001" / OPTIMIZER).exists()
    assert verify(place / "p/models/r/checkpoints/0001").step == 1
    again = data(root, *rules, "--dry-run")
    assert (again["deleted"], again["optimizer_dropped"]) == ([], []), "it has gone already"
    assert data(root, "gc", "--run", "p/r", *store)["deleted"] == []


def test_what_is_refused(root: Path) -> None:
    for arguments, message in (
        (("gc", "--run", "p/r", "--keep", "newest=3"), "rule is 'newest=3'; allowed: latest=K"),
        (("gc", "--run", "p/r", "--keep", "latest=many"), "rule is 'latest=many'"),
        (("gc", "--run", "p/r", "--keep", "latest=0"), "retention latest is 0"),
        (
            ("gc", "--run", "p/r", "--keep", "latest=1", "--keep", "latest=2"),
            "is given twice, as 1 and 2; give it",
        ),
        (("gc", "--run", "p/r", "--keep", "best=val/other"), "has 'val/other'; name a metric that was logged"),
        (("gc", "--run", "r"), "give <project>/<run>"),
        (("push", "--run", "p/r", "--store", "file"), "holds no copies: give a URL"),
        (("push", "--run", "p/r", "--store", "memory://x"), "goes with this command's process: give a URL"),
        (("push", "--run", "p/r", "--store", "fsspec"), "'fsspec' has no URL; give one as the store"),
    ):
        done = run(root, *arguments)
        assert isinstance(done.exception, ConfigError) and message in str(done.exception), done.exception
    holder = RunDirectory.create_or_open(root, "p", "r", "tiny", LoRAConfig())
    staged = holder.stage()
    assert isinstance(run(root, "gc", "--run", "p/r").exception, RunLockedError)
    assert data(root, "gc", "--run", "p/r", "--keep", "latest=2", "--dry-run")["deleted"] == [0, 1, 2]
    assert staged.exists(), "a dry run beside a training touches nothing of it"
    holder.close()


def test_rules_are_read_with_the_history_of_the_run_that_the_path_names(root: Path) -> None:
    """The path may be the run's own directory."""
    rule = ("gc", "--run", "p/r", "--keep", "best=val/reward")
    for dry in (("--dry-run",), ()):
        assert data(root / "p/models/r", *rule, *dry)["deleted"] == [0, 2, 3]


@pytest.mark.parametrize("where", ["here", "in a store"])
def test_a_damaged_step_that_no_listing_shows_can_be_deleted(root: Path, tmp_path: Path, where: str) -> None:
    """As the error that names it advises; a step that is not there at all is said."""
    store = ("--store", (tmp_path / "store").as_uri()) if where == "in a store" else ()
    run(root, "push", "--run", "p/r", "--store", (tmp_path / "store").as_uri())
    place = tmp_path / "store" if store else root
    (place / "p/models/r/checkpoints/0002/manifest.json").write_text("{}")
    done = run(root, "delete", "--run", "p/r", *store, "--step", "2", "--step", "9")
    assert isinstance(done.exception, CheckpointNotFoundError)
    assert "run p/r has no step 9; its steps: 0, 1, 3, 4; deleted: 2" in str(done.exception)
    assert steps(place) == [0, 1, 3, 4]
