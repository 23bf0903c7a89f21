"""A part that declares an environment: whether it can be chosen, and which interpreter its process is launched with."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from art_core.compose import Choice, compose
from art_core.config import Environment, HostedOptions, Timeouts
from art_core.environment import create
from art_core.errors import ConfigError, PluginContractError, PluginUnusableError, TrainerStartError
from art_core.plugins import Plugins, check_part
from art_core.selection import Given, select
from art_core.step import StepConfig
from tests import numpy_trainer
from tests.art_core.builtin.numpy_engine import NumpyEngine
from tests.art_core.environment.case import QUIVER, install_plugin
from tests.numpy_trainer import SPEC, make_batch
from tests.wheel import Wheel

ROOT = Path(__file__).parents[3]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    yield site
    sys.modules.pop("art_bow", None)


def watched(tmp_path: Path) -> Path:
    """An interpreter that writes down that it was used."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho used >> {tmp_path}/uses\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_without_its_library_it_is_not_chosen_and_says_what_to_do(site: Path) -> None:
    with pytest.raises(PluginUnusableError) as caught:
        select(Plugins(), "trainer", "bow", Environment.read())
    assert str(caught.value).startswith(
        "trainer 'bow' (named by the option trainer) can't work here: needs quiver>=2; installed: none of it, in "
    )
    assert "try: art env create bow --device " in str(caught.value)
    (candidate,) = [each for each in Plugins().candidates("trainer") if each.part.name == "bow"]
    assert candidate.unusable and "art env create bow" in candidate.unusable


def test_with_its_library_here_it_needs_no_environment(site: Path) -> None:
    Wheel("quiver", "2.5").install(site)
    assert select(Plugins(), "trainer", "bow", Environment.read()).part.name == "bow"
    Wheel("quiver", "1.5").install(site)
    with pytest.raises(PluginUnusableError, match=r"installed: quiver 1\.5"):
        select(Plugins(), "trainer", "bow", Environment.read())


async def test_an_interpreter_of_the_users_choice_is_used(site: Path, tmp_path: Path) -> None:
    """Its library is there, not here, and nothing here stops that."""
    python = watched(tmp_path)
    choice = Choice(engine=NumpyEngine(), trainer="bow", trainer_options={"python": str(python)})
    trainer = compose(choice, Plugins(), tmp_path, Timeouts()).trainer
    Wheel("quiver", "2.1", "ARROWS = 3\n").install(site)
    await trainer.start(SPEC, None)
    await trainer.stop()
    assert (tmp_path / "uses").read_text() == "used\n"


async def test_a_callable_of_another_interpreter_need_not_be_importable_here(site: Path, tmp_path: Path) -> None:
    options = {"python": str(watched(tmp_path)), "deep": [1]}
    choice = Choice(engine=NumpyEngine(), trainer=numpy_trainer.FACTORY, trainer_options=options)
    trainer = compose(choice, Plugins(), tmp_path, Timeouts()).trainer
    await trainer.start(SPEC, None)
    (tmp_path / "saved").mkdir()
    await trainer.save(tmp_path / "saved")
    await trainer.stop()
    assert (tmp_path / "uses").read_text() == "used\n"
    assert (tmp_path / "saved" / "adapter_config.json").read_text() == '{"deep": [1]}', "python is no option of its own"
    select(Plugins(), "trainer", "only_there:make", Environment(), Given({"python": sys.executable}))


async def test_an_interpreter_without_the_library_is_refused_there(site: Path, tmp_path: Path) -> None:
    choice = Choice(engine=NumpyEngine(), trainer="bow", trainer_options={"python": sys.executable})
    trainer = compose(choice, Plugins(), tmp_path, Timeouts()).trainer
    with pytest.raises(TrainerStartError) as caught:
        await trainer.start(SPEC, None)
    await trainer.stop()
    assert f"trainer 'bow' can't run in {sys.executable}: needs quiver>=2; installed: none of it" in str(caught.value)
    assert "art env create bow" in str(caught.value)


async def test_another_version_of_the_plugin_there_is_refused(site: Path, tmp_path: Path) -> None:
    choice = Choice(engine=NumpyEngine(), trainer="bow", trainer_options={"python": sys.executable})
    trainer = compose(choice, Plugins(), tmp_path, Timeouts()).trainer
    other = tmp_path / "other"
    other.mkdir()
    Wheel("art-bow", "0.9", code=(site / "art_bow.py").read_text(), plugin="bow").install(other)
    trainer._variables = {"PYTHONPATH": f"{other}{os.pathsep}{ROOT}"}
    with pytest.raises(TrainerStartError, match=r"art-bow is 1\.0 here and 0\.9 there; install the same on both sides"):
        await trainer.start(SPEC, None)


def test_a_python_that_is_none_is_refused() -> None:
    class Options(HostedOptions):
        part = "bow"

    with pytest.raises(ConfigError, match=r"'bow' option 'python' is '/no/python': .*there is no such command"):
        Options.parse({"python": "/no/python"})
    assert Options.parse({"python": "sh"}).python == shutil.which("sh")
    assert Options.parse({}).python is None


def test_an_environment_is_called_as_its_part(site: Path) -> None:
    part = Plugins().part("trainer", "bow")
    object.__setattr__(part, "environment", None)
    check_part(part, "trainer", "bow")
    spec = Plugins().environments()["bow"]
    object.__setattr__(part, "environment", spec)
    check_part(part, "trainer", "bow")
    object.__setattr__(spec, "name", "arrow")
    with pytest.raises(PluginContractError, match=r"trainer 'bow' has environment\.name 'arrow'; this ART needs 'bow'"):
        check_part(part, "trainer", "bow")


def closure(distribution: str) -> set[str]:
    """Canonical names of what a distribution needs, extras left out."""
    found: set[str] = set()
    todo = [distribution]
    while todo:
        for line in requires(todo.pop()) or []:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                todo.append(name)
    return found


@pytest.mark.heavy
async def test_a_trainer_in_an_interpreter_of_its_own(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: built from the tested versions of what art-core needs, and the trainer lives and dies in it."""
    QUIVER.write(tmp_path)
    links = os.environ.get("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{links} {tmp_path}".strip())
    needed = closure("art-core")
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [line for line in pins if canonicalize_name(line.partition("==")[0]) in needed]
    install_plugin(site, "quiver==2.1", *pins, ours=("art-core", "art-bow"))
    plugins = Plugins()
    python = create(plugins.environments()["bow"], Environment.read().cache, report=print)
    assert select(plugins, "trainer", "bow", Environment.read()).part.name == "bow"
    trainer = compose(Choice(engine=NumpyEngine(), trainer="bow"), Plugins(), tmp_path, Timeouts()).trainer
    info = await trainer.start(SPEC, None)
    process = psutil.Process(int(info.versions["pid"]))
    assert process.cmdline()[0] == str(python)
    assert (await trainer.step(make_batch(), StepConfig(learning_rate=0.1))).metrics["third"] == 1 / 3
    (tmp_path / "saved").mkdir()
    await trainer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_config.json").read_text() == '{"quiver": 3}', (
        "the library of that interpreter"
    )
    await trainer.stop()
    assert not process.is_running()
