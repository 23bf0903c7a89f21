"""Environments built for real by venv and pip, from a folder of tiny wheels that the user's pip settings name."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from art_core.environment import EnvironmentSpec, check, create, interpreter, list_environments, missing, remove
from art_core.environment.built import Place, places
from art_core.errors import ArtError, ConfigError, EnvironmentBuildError, PluginContractError, PluginUnusableError
from art_core.testing.condition import LONGEST_S
from tests.art_core.environment.case import OURS, QUIVER, bow, index
from tests.wheel import Wheel

ROOT = Path(__file__).parents[3]
LOOK = "import art_bow, quiver, sys; print(art_bow.DRAWN, art_bow.__file__, sys.prefix)"
CREATOR = """
import sys
from pathlib import Path
from art_core.environment import create
from tests.art_core.environment.case import bow
say = lambda line: print(line, flush=True)
create(bow(Path(sys.argv[1])), Path(sys.argv[2]), report=say)
"""


def run(python: str | Path, code: str) -> str:
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def copied(cache: Path, into: Path) -> Place:
    """An environment as if it had been built in another cache."""
    target = into / "environments" / only(cache).directory.name
    shutil.copytree(only(cache).directory, target, symlinks=True, ignore=shutil.ignore_patterns("with"))
    return Place(target)


def only(cache: Path) -> Place:
    (place,) = places(cache)
    return place


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    for wheel in (QUIVER, Wheel("quiver", "2.2", "ARROWS = 5\n"), Wheel("crossbow")):
        wheel.write(directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Path]:
    """Where our own distribution is installed, in this interpreter and those that it starts."""
    directory = tmp_path_factory.mktemp("site")
    OURS.install(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{ROOT}")
        index(patch, wheels)
        yield directory


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EnvironmentSpec:
    return bow(tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, spec: EnvironmentSpec) -> Path:
    """A cache with the part's environment."""
    cache = tmp_path_factory.mktemp("cache")
    create(spec, cache, "cpu", report=lambda line: None)
    return cache


def test_it_holds_the_set_and_our_own_as_they_are_here(cache: Path, spec: EnvironmentSpec) -> None:
    python = interpreter(spec, cache)
    drawn, file, prefix = run(python, LOOK).split()
    assert drawn == "3"
    assert Path(python).is_relative_to(prefix) and Path(file).is_relative_to(prefix)
    assert missing(spec, cache) is None
    assert check(spec, cache) == (python, [])


def test_a_second_call_builds_nothing(cache: Path, spec: EnvironmentSpec) -> None:
    before = only(cache).log.stat().st_mtime_ns
    said: list[str] = []
    assert str(create(spec, cache, report=said.append)) == interpreter(spec, cache)
    assert said == []
    create(spec, cache, dry_run=True, report=said.append)
    assert said == [f"nothing to do: {only(cache).directory} stands"] and only(cache).log.stat().st_mtime_ns == before


def test_a_new_release_of_ours_enters_without_a_build(cache: Path, spec: EnvironmentSpec, site: Path) -> None:
    before, log = interpreter(spec, cache), only(cache).log.stat().st_mtime_ns
    try:
        Wheel("art-bow", "1.1", "DRAWN = 'new'\n", requires="quiver>=2").install(site)
        after = interpreter(spec, cache)
        assert run(after, LOOK).split()[0] == "new"
        assert run(before, LOOK).split()[0] == "3", "what runs there is not changed beneath its feet"
        assert only(cache).log.stat().st_mtime_ns == log
        Wheel("art-bow", "1.2", requires="crossbow").install(site)
        with pytest.raises(EnvironmentBuildError, match="art-bow needs crossbow; the set has none; build it from"):
            interpreter(spec, cache)
    finally:
        OURS.install(site)


def test_a_checkout_of_ours_is_what_runs_there(cache: Path, spec: EnvironmentSpec, site: Path, tmp_path: Path) -> None:
    """An editable installation: its record lists a ``.pth`` file that leads to the checkout, and no module."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "art_bow.py").write_text("DRAWN = 'edited once'\n")
    editable = Wheel("art-bow", "1.0", f"{checkout}\n", requires="quiver>=2", file="_editable_impl_art_bow.pth")
    (site / "art_bow.py").unlink()
    editable.install(site)
    try:
        python = interpreter(spec, cache)
        assert run(python, LOOK).split()[:-2] == ["edited", "once"]
        (checkout / "art_bow.py").write_text("DRAWN = 'twice'\n")
        assert interpreter(spec, cache) == python
        assert run(python, LOOK).split()[0] == "twice"
    finally:
        (site / "_editable_impl_art_bow.pth").unlink()
        OURS.install(site)


def test_what_has_no_record_can_not_enter(cache: Path, spec: EnvironmentSpec, site: Path) -> None:
    (site / "art_bow-1.0.dist-info" / "RECORD").unlink()
    try:
        with pytest.raises(EnvironmentBuildError, match=r"art-bow 1\.0 has no record .*-m pip install art-bow"):
            interpreter(spec, cache)
    finally:
        OURS.install(site)


def test_another_set_is_another_environment(cache: Path, spec: EnvironmentSpec, tmp_path: Path) -> None:
    newer = bow(tmp_path, "quiver==2.2")
    reason = missing(newer, cache)
    assert reason is not None
    assert reason.startswith("needs quiver>=2; installed: none of it, in ")
    assert "it was built from another version of its set; try: art env create bow --device cpu" in reason
    with pytest.raises(PluginUnusableError, match="'bow' has no interpreter to run in: needs quiver>=2"):
        interpreter(newer, cache)
    (state,) = list_environments(cache, {"bow": newer})
    assert state.unused == "it was built from another version of its set; art env remove bow --unused"
    (state,) = list_environments(cache, {"bow": spec})
    assert (state.unused, state.python, state.library) == (None, sys.version.split()[0], {"quiver": "2.1"})
    assert state.size_bytes is not None and state.size_bytes > 1 << 20
    (state,) = list_environments(cache, {})
    assert state.unused == "no installed plugin declares it; art env remove bow"


def test_a_library_that_is_here_and_fits_needs_no_environment(tmp_path: Path) -> None:
    here = bow(tmp_path, library={"numpy": ">=2"}, modules=["numpy"])
    assert interpreter(here, tmp_path) == sys.executable
    assert missing(here, tmp_path) is None


def test_a_dry_run_says_everything_and_changes_nothing(spec: EnvironmentSpec, tmp_path: Path) -> None:
    said: list[str] = []
    target = create(spec, tmp_path / "cache", "cpu", dry_run=True, report=said.append)
    assert said[0] == f"would build {target}"
    assert f"(Python {sys.version.split()[0]}, " in said[1]
    assert said[3:] == ["  quiver==2.1", "and, as they are installed here:", "  art-bow 1.0"]
    assert not (tmp_path / "cache").exists()


def test_who_comes_second_waits_and_builds_nothing(spec: EnvironmentSpec, tmp_path: Path) -> None:
    """Three at once: each ends with the same interpreter, and pip has run once. The first waits for the others."""
    said: list[str] = []
    made: list[Path] = []
    others = threading.Semaphore(0)

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("another process is building"):
            others.release()
        elif line.startswith("building"):
            assert all(others.acquire(timeout=LONGEST_S) for _ in range(2))

    threads = [
        threading.Thread(target=lambda: made.append(create(spec, tmp_path, "cpu", report=say))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3 and len(set(made)) == 1
    assert len([line for line in said if line.startswith("building")]) == 1
    assert only(tmp_path).log.read_text().count("pip install") == 1


def test_a_killed_builder_leaves_nothing_that_runs_or_is_used(spec: EnvironmentSpec, tmp_path: Path) -> None:
    """It is killed while pip asks an index that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LONGEST_S)
        environment = {**os.environ, "PIP_NO_INDEX": "0", "PIP_FIND_LINKS": ""}
        environment["PIP_INDEX_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        command = [sys.executable, "-c", CREATOR, tmp_path, tmp_path]
        builder = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        asked, _ = silent.accept()
        with asked:
            children = psutil.Process(builder.pid).children(recursive=True)
            assert [each for each in children if "pip" in each.cmdline()]
            builder.kill()
            builder.wait()
            assert psutil.wait_procs(children, LONGEST_S)[1] == [], "pip outlived its builder"
    (state,) = list_environments(tmp_path, {"bow": spec})
    assert state.unused == "it is not whole; art env create bow, or art env remove bow"
    assert missing(spec, tmp_path) is not None
    said: list[str] = []
    python = create(spec, tmp_path, "cpu", report=said.append)
    assert said[0] == f"removing {only(tmp_path).directory}, which is not whole"
    assert run(python, LOOK).split()[0] == "3"


def test_what_pip_can_not_find_is_said_with_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError) as caught:
        create(bow(tmp_path, "quiver==9"), tmp_path, "cpu", report=lambda line: None)
    message = str(caught.value)
    assert "No matching distribution found for quiver==9" in message
    assert "your package index does not offer that version for this interpreter" in message
    (log,) = (tmp_path / "environments").glob("*.log")
    assert str(log) in message and "No matching distribution" in log.read_text()
    assert places(tmp_path) == [], "what was begun is gone"


def test_a_set_without_its_own_library_is_the_plugins_fault(tmp_path: Path, site: Path) -> None:
    spec = bow(tmp_path, "crossbow==1.0", distributions=[])
    with pytest.raises(PluginContractError, match=r"cpu.txt does not install its own library: needs quiver>=2"):
        create(spec, tmp_path, "cpu", report=lambda line: None)
    assert places(tmp_path) == []


@pytest.mark.parametrize(
    ("fields", "device", "python", "error", "message"),
    [
        ({}, "tpu", None, ConfigError, "'bow' has no set for 'tpu'; .*known: cpu"),
        ({}, "cpu", "no-such-python", ConfigError, "there is no interpreter 'no-such-python'"),
        ({}, "cpu", "/bin/true", ConfigError, "/bin/true does not answer as an interpreter"),
        ({"python": ">=4"}, "cpu", None, ConfigError, "the sets of 'bow' needs >=4; name another interpreter"),
        (
            {"space_bytes": 1 << 60},
            "cpu",
            None,
            EnvironmentBuildError,
            "GB free and building bow-cpu-.* takes 11529",
        ),
        (
            {"distributions": ["art-nowhere"]},
            "cpu",
            None,
            EnvironmentBuildError,
            "art-nowhere is to .* is not installed",
        ),
        ({"distributions": ["numpy"]}, "cpu", None, EnvironmentBuildError, "numpy .* compiled for this interpreter"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, object], device: str, python: str | None, error: type[ArtError], message: str
) -> None:
    with pytest.raises(error, match=message):
        create(bow(tmp_path, **fields), tmp_path / "cache", device, python=python)
    assert not (tmp_path / "cache").exists()


def test_a_set_that_lacks_what_we_need_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PluginContractError, match=r"cpu\.txt lacks .*: art-bow needs quiver>=2; the set has none"):
        create(bow(tmp_path, "crossbow==1.0"), tmp_path / "cache", "cpu")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_can_not_be_written_is_named(spec: EnvironmentSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentBuildError, match=r"/file/.* can't be opened: .*; set ART_CACHE elsewhere"):
        create(spec, tmp_path / "file", "cpu")


def test_somebody_elses_change_is_seen_and_an_environment_is_removed(
    spec: EnvironmentSpec, cache: Path, tmp_path: Path
) -> None:
    place = copied(cache, tmp_path)
    (module,) = place.directory.glob("lib/python*/site-packages/quiver.py")
    module.write_text("raise OSError('string broke')")
    (metadata,) = place.directory.glob("lib/python*/site-packages/quiver-*/METADATA")
    metadata.write_text(metadata.read_text().replace("2.1\n", "2.0\n"))
    used, problems = check(spec, tmp_path)
    assert used == interpreter(spec, tmp_path)
    assert problems[0] == "quiver==2.1 (installed: 2.0); art env remove bow, then art env create bow"
    assert problems[1].startswith("import quiver: OSError: string broke; see all of it by: ")
    metadata.unlink()  # as a removal that was cut short leaves it
    assert check(spec, tmp_path)[1][0].startswith("quiver==2.1 (installed: none); art env remove bow")
    assert remove("bow", tmp_path, {"bow": spec}, unused_only=True) == []
    with place.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentBuildError, match="is being built by another process"):
            remove("bow", tmp_path, {"bow": spec})
    assert remove("bow", tmp_path, {}) == [place.directory]
    assert not place.directory.exists() and places(tmp_path) == []
    with pytest.raises(ConfigError, match="there is no environment 'bow'; known: none"):
        remove("bow", tmp_path, {})


def test_one_whose_interpreter_is_gone_is_not_used(spec: EnvironmentSpec, cache: Path, tmp_path: Path) -> None:
    place = copied(cache, tmp_path)
    assert missing(spec, tmp_path) is None
    place.python.unlink()
    place.python.symlink_to("/nowhere/python3")
    reason = missing(spec, tmp_path)
    assert reason is not None and "the interpreter that it was built with is gone: /nowhere/python3" in reason
    said: list[str] = []
    create(spec, tmp_path, "cpu", dry_run=True, report=said.append)
    assert said[0] == f"would build {place.directory}"
    built = place.built()
    assert built is not None
    place.finish(replace(built, platform="plan9-mips"))
    reason = missing(spec, tmp_path)
    assert reason is not None and "it was built on plan9-mips" in reason
    (place.directory / "ready.json").write_text(json.dumps({"name": "bow"}))
    assert missing(spec, tmp_path) is not None, "a description of another kind is none"


def test_of_several_the_one_for_this_machine_is_taken(spec: EnvironmentSpec, cache: Path, tmp_path: Path) -> None:
    both = bow(tmp_path, requirements={"cpu": spec.requirements["cpu"], "gpu": spec.requirements["cpu"]})
    cpu = copied(cache, tmp_path)
    gpu = Place(cpu.directory.with_name(cpu.directory.name.replace("-cpu-", "-gpu-")))
    shutil.copytree(cpu.directory, gpu.directory, symlinks=True)
    built = gpu.built()
    assert built is not None
    gpu.finish(replace(built, device="gpu"))
    expected = "gpu" if Path("/dev/nvidia0").exists() else "cpu"
    assert f"/bow-{expected}-" in interpreter(both, tmp_path)
    assert "/bow-gpu-" in interpreter(both, tmp_path, "gpu")
    assert "/bow-cpu-" in interpreter(both, tmp_path, "cpu")
    assert remove("bow", tmp_path, {"bow": spec}, unused_only=True) == [gpu.directory]
    assert "/bow-cpu-" in interpreter(spec, tmp_path)
