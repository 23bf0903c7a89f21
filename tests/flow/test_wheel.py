"""The wheels as a user gets them: what is in them, and that they work in a new environment, away from the checkout.

Packages come from the configured index, with the versions of constraints.txt, and through pip's cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"art-core": ROOT} | {
    path.parent.name: path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))
}
IMPORTS = """
import importlib, pkgutil, sys
import art, art.local, art_core
extras = ("art_core.demo", "art_core.fsspec_bucket", "art_core.testing")
for package in (art, art_core):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(extras):
            importlib.import_module(module.name)
assert "site-packages" in art.__file__ and "site-packages" in art_core.__file__
assert "torch" not in sys.modules
print(*sys.version_info[:2], sep=".")
"""

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1500)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run it with nothing of this checkout or its environment on the path; its output."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def interpreter(version: str) -> Path | None:
    """A Python of that version, if this machine has one."""
    found = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for each in filter(None, found):
        asked = [each, "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return Path(each)
    return None


def environment(python: Path, directory: Path, *requirements: str | Path) -> Path:
    """A new virtual environment with those installed; its folder of programs."""
    run(python, "-m", "venv", directory, cwd=directory.parent)
    pip = [directory / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", *requirements, cwd=directory.parent)
    return directory / "bin"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every distribution of this repository, built from a copy."""
    work = tmp_path_factory.mktemp("wheels")
    shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(".*", "dist", "build", "__pycache__"))
    built = {}
    for name, path in DISTRIBUTIONS.items():
        target = work / name
        source = work / "source" / path.relative_to(ROOT)
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", target, source, cwd=work)
        (built[name],) = target.glob("*.whl")
    return built


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_what_a_wheel_holds(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        files = wheel.namelist()
        packages = {file.split("/")[0] for file in files if "/" in file and ".dist-info/" not in file}
        assert packages == ({"art", "art_core"} if name == "art-core" else {name.replace("-", "_")})
        assert {f"{package}/py.typed" for package in packages} <= set(files)
        assert not [file for file in files if re.search(r"(^|/)(tests?|conftest\.py|__pycache__|docs)(/|$)", file)]
        (points,) = (file for file in files if file.endswith("entry_points.txt"))
        offered = wheel.read(points).decode()
        assert "[art_core]" in offered
        assert ("art = art_core.cli:main" in offered) == (name == "art-core")
        (license_file,) = (file for file in files if file.endswith("licenses/LICENSE"))
        assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()
        about = metadata(wheel)
        assert (about["Name"], about["License-Expression"]) == (name, "Apache-2.0")
        assert about["Requires-Python"] == ">=3.11"
        assert len(about.get_payload()) > 500, "the page of the package index is empty"


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_core_alone_imports(wheels: dict[str, Path], tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    programs = environment(python, tmp_path / "env", wheels["art-core"])
    assert run(programs / "python", "-W", "error::SyntaxWarning", "-c", IMPORTS, cwd=tmp_path).strip() == version
    listed = json.loads(run(programs / "art", "plugins", "list", "--json", cwd=tmp_path))
    usable = {plugin["name"]: [part["unusable"] is None for part in plugin["parts"]] for plugin in listed}
    assert usable == {"file": [True], "fsspec": [False], "reload": [True]}
    run(programs / "python", "-m", "pip", "check", cwd=tmp_path)


def test_the_demo_runs_from_the_wheels(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = interpreter(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert python is not None
    programs = environment(python, tmp_path / "env", f"{wheels['art-core']}[demo]", wheels["art-torch"])
    run(programs / "python", "-m", "pip", "check", cwd=tmp_path)
    told = run(programs / "art", "demo", "--steps", "1", cwd=tmp_path)
    assert "served json-facts@1" in told
    assert list((tmp_path / ".art").glob("**/json-facts/checkpoints/0001/manifest.json"))
    run(programs / "art", "checkpoints", "verify", cwd=tmp_path)


def test_wheels_of_engines_enter_their_environments(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The environments are those of the other heavy tests; what was installed here is what runs there."""
    names = ("sglang", "vllm")
    programs = environment(
        Path(sys.executable), tmp_path / "env", wheels["art-core"], *(wheels[f"art-{name}"] for name in names)
    )
    for name in names:
        told = run(programs / "art", "env", "create", name, "--device", "cpu", cwd=tmp_path)
        asked = f"import art_core, art_{name}; print(art_core.__file__, art_{name}.__file__)"
        assert run(told.split()[-1], "-P", "-c", asked, cwd=tmp_path).count("/with/") == 2
    listed = json.loads(run(programs / "art", "plugins", "list", "--json", cwd=tmp_path))
    usable = {each["name"]: [part["unusable"] for part in each["parts"]] for each in listed}
    assert usable.items() >= {name: [None] for name in names}.items()
