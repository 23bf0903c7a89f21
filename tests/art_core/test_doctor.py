"""What `art doctor` and `art plugins list` say, as the installed command says it, with real distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from art_core.device import Gpu, Machine
from art_core.doctor import LOW_SPACE_BYTES, Package, Place, _problems_of_the_machine
from tests.installed import install, store


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of distributions on the command's path."""
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def art(*arguments: str, site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *sys.path])
    command = [str(Path(sys.executable).with_name("art")), *arguments]
    variables = {"PATH": "/usr/bin", "HOME": str(site.parent), "PYTHONPATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=site.parent)


def doctor(site: Path, *arguments: str, **environment: str) -> tuple[int, Any]:
    done = art("doctor", "--json", *arguments, site=site, **environment)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def choices(found: Mapping[str, Any]) -> dict[str, tuple[str | None, str]]:
    return {each["kind"]: (each["name"], each["reason"]) for each in found["choices"]}


def test_a_whole_installation(site: Path) -> None:
    code, found = doctor(site, "--publisher", "reload", ART_STORE="file", ART_CACHE=str(site / "cache" / "deep"))
    assert code == 0 and found["can_start"]
    assert choices(found)["store"] == ("file", "named by ART_STORE")
    assert choices(found)["publisher"] == ("reload", "named by the option publisher")
    name, reason = choices(found)["engine"]
    assert name == "torch" and reason.startswith("automatic, the only engine usable here")
    assert found["interpreter"] == sys.executable
    assert found["machine"]["cores"] >= 1
    packages = {(each["by"], each["name"]): each["version"] for each in found["packages"]}
    assert packages["art-core", "numpy"] == version("numpy")
    assert packages["art-torch", "torch"] == version("torch")
    assert ("art-core", "pytest") not in packages  # an extra's
    places = {each["what"]: each for each in found["places"]}
    assert places["runs"]["path"] == str(site.parent / ".art")
    assert places["converted models"]["path"] == str(site / "cache" / "deep")
    assert all(each["writable"] and each["free_bytes"] > 0 for each in places.values())
    assert not list(site.parent.glob(".art")) and not (site / "cache").exists()  # it only looked


def test_everything_wrong_at_once(site: Path) -> None:
    """A broken plugin, one that can't work here and a missing requirement: each with its next step."""
    (site / "torch.py").write_text("raise ImportError('never import this here')")
    install(site, "broken", "import no_such_thing")
    install(
        site, "big", store("big", extra=", usable=lambda: 'no GPU; try: another machine'"), requires="nothing-here>=3"
    )
    root = site / "file"
    root.write_text("")
    code, found = doctor(site, "--store", "big", "--engine", "tcorh", "--path", str(root / "runs"))
    assert code == 1 and not found["can_start"]
    assert choices(found)["store"] == (
        None,
        "store 'big' (named by the option store) can't work here: no GPU; try: another machine",
    )
    problems = {each["what"]: each["stops"] for each in found["problems"]}
    assert problems[choices(found)["store"][1]]
    (engine,) = (what for what in problems if what.startswith("engine 'tcorh' is not installed; did you mean 'torch'"))
    (broken,) = (what for what in problems if what.startswith("plugin 'broken' is broken: PluginLoadError"))
    (missing,) = (what for what in problems if what.startswith("art-big needs nothing-here>=3"))
    (runs,) = (what for what in problems if what.startswith(f"{root}/runs (runs) can't be written"))
    assert [problems[each] for each in (engine, broken, missing, runs)] == [True, False, False, True]
    assert broken.endswith("upgrade or uninstall art-broken")
    assert missing.endswith("pip install 'nothing-here>=3'")
    states = {each["name"]: each for each in found["plugins"]}
    assert states["big"]["parts"][0]["unusable"] == "no GPU; try: another machine"
    assert states["torch"]["error"] is None  # looked for, not imported


def test_the_text_says_the_same_on_plain_lines(site: Path) -> None:
    install(site, "broken", "raise RuntimeError('[bold]boom')")
    done = art("doctor", "--engine", "tcorh", site=site, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "\x1b" in line or "│" in line]
    (broken,) = (line for line in lines if line.split()[:2] == ["broken", "art-broken"])
    assert broken.endswith("can't be imported: RuntimeError: [bold]boom")
    assert any(line.startswith("problem: engine 'tcorh' is not installed") for line in lines)
    assert any(line.startswith("warning: plugin 'broken' is broken") for line in lines)
    assert any("CUDA_VISIBLE_DEVICES" in line and "programs see no GPU" in line for line in lines)
    assert lines[-1] == "no run can start here: mend the problems above"


def test_plugins_list(site: Path) -> None:
    since = ", capabilities=Capabilities({Capability.CREATE_IF_ABSENT: since('2.1')})"
    imports = "from art_core.capability import Capabilities, Capability, since\n"
    install(site, "tape", imports + store("tape", priority=7, extra=since))
    install(site, "old", store("old", extra=", contract_version=99"))
    install(site, "broken", "raise RuntimeError('boom')")
    done = art("plugins", "list", "--json", site=site)
    assert done.returncode == 0 and done.stderr == ""
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["tape"] == {
        "name": "tape",
        "distribution": "art-tape",
        "version": "1.0",
        "parts": [
            {
                "kind": "store",
                "priority": 7,
                "contract_version": 1,
                "capabilities": {"create_if_absent": "since 2.1"},
                "options": ["url"],
                "unusable": None,
            }
        ],
        "error": None,
    }
    assert "contract_version 99; this ART needs 1" in found["old"]["error"]
    assert "RuntimeError: boom" in found["broken"]["error"]
    assert {part["kind"] for part in found["torch"]["parts"]} == {"engine", "trainer"}
    plain = art("plugins", "list", site=site).stdout.splitlines()
    (tape,) = (line for line in plain if line.split()[:1] == ["tape"])
    assert tape.split() == ["tape", "art-tape", "1.0", "store", "1", "7", "create_if_absent", "(since", "2.1)", "yes"]


def test_what_is_wrong_with_the_machine() -> None:
    """Conditions that this machine is not in."""
    this = Machine("Linux", 2, 1 << 30, [Gpu("A10", None, None)], mps=False, gpu_problem="nvidia-smi does not answer")
    places = [
        Place("runs", Path("/full"), writable=True, free_bytes=LOW_SPACE_BYTES - 1),
        Place("converted models", Path("/ro"), writable=False, free_bytes=1 << 40),
    ]
    problems = list(_problems_of_the_machine(this, [Package("numpy", "2.0", "numpy>=2", "art-core")], places))
    assert [problem.what.split(" (")[0] for problem in problems] == ["nvidia-smi does not answer", "/full", "/ro"]
    assert not any(problem.stops for problem in problems)
