"""``art env``, as a person types it, with a plugin that declares an environment. Nothing is built here but a plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.art_core.environment.case import install_plugin
from tests.installed import install
from tests.wheel import Wheel


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site)
    install(site, "broken", "raise RuntimeError('boom')")
    return site


def art(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("art"), *arguments]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "ART_CACHE": str(site.parent / "cache")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=site.parent)


def test_a_plan_is_printed_and_nothing_is_made(site: Path) -> None:
    done = art(site, "env", "create", "bow", "--device", "cpu", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"would build {site.parent}/cache/environments/bow-cpu-")
    assert lines[3:] == ["  quiver==2.1", "and, as they are installed here:", "  art-bow 1.0"]
    assert not (site.parent / "cache").exists()
    everything = art(site, "env", "create", "--all", "--device", "cpu", "--dry-run")
    assert lines[0] in everything.stdout.splitlines()
    assert art(site, "env", "create", "--all", "--device", "tpu", "--dry-run").stdout == ""


def test_names_that_there_are_not(site: Path) -> None:
    done = art(site, "env", "create", "bwo")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "PluginNotFoundError: no installed part 'bwo' declares an environment; did you mean 'bow'? known: bow"
    )
    done = art(site, "env", "create", "bow", "--device", "cup")
    assert done.returncode == 2 and "did you mean 'cpu'?" in done.stderr
    done = art(site, "env", "remove", "bow")
    assert done.returncode == 2 and "there is no environment 'bow'" in done.stderr
    done = art(site, "env", "check", "bow")
    assert done.returncode == 2 and "try: art env create bow --device " in done.stderr


def test_what_a_stopped_builder_left_is_listed_and_removed(site: Path) -> None:
    left = site.parent / "cache" / "environments" / "bow-cpu-cpython311-0123456789ab"
    (left / "bin").mkdir(parents=True)
    (state,) = json.loads(art(site, "env", "list", "--json").stdout)
    assert state == {
        "name": "bow",
        "device": "cpu",
        "directory": str(left),
        "unused": "it is not whole; art env create bow, or art env remove bow",
        "python": None,
        "library": {},
        "size_bytes": None,
        "created": None,
    }
    plain = art(site, "env", "list").stdout
    assert "no: it is not whole" in plain
    done = art(site, "env", "remove", "bow", "--unused")
    assert (done.returncode, done.stdout) == (0, f"removed {left}\n")
    assert not left.exists()
    assert json.loads(art(site, "env", "list", "--json").stdout) == []


def test_the_doctor_says_where_a_library_would_run_and_how_to_get_it(site: Path) -> None:
    done = art(site, "doctor", "--json", "--trainer", "bow")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    (library,) = [each for each in found["libraries"] if each["name"] == "bow"]
    assert (library["name"], library["interpreter"]) == ("bow", None)
    assert library["missing"].startswith("needs quiver>=2; installed: none of it, in ")
    assert "art env create bow --device " in library["missing"]
    assert any(each["stops"] and "art env create bow" in each["what"] for each in found["problems"])
    Wheel("quiver", "2.5").install(site)
    found = json.loads(art(site, "doctor", "--json", "--trainer", "bow").stdout)
    (library,) = [each for each in found["libraries"] if each["name"] == "bow"]
    assert library == {"name": "bow", "interpreter": sys.executable, "versions": {"quiver": "2.5"}, "missing": None}
    assert found["can_start"]
    (line,) = [line.split() for line in art(site, "doctor").stdout.splitlines() if line.split()[:1] == ["bow"]][1:]
    assert line == ["bow", sys.executable, "quiver", "2.5", "-"]
