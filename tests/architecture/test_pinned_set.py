"""The pinned sets that plugins ship: each is whole for what enters it, before anybody builds an environment from it."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from art_core.environment import EnvironmentSpec
from art_core.environment.own import OwnDistribution, unmet
from art_core.environment.spec import misfit, pinned_set
from art_core.plugins import Plugins
from tests.architecture.source import ROOT

SPECS = Plugins().environments()
SETS = [
    pytest.param(spec, device, id=f"{name}-{device}") for name, spec in SPECS.items() for device in spec.requirements
]


def declared() -> dict[str, OwnDistribution]:
    """Our distributions as their projects say now, not as they were when they were installed."""
    found = {}
    for path in (ROOT / "pyproject.toml", *(ROOT / "plugins").glob("*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        requires = [Requirement(line) for line in project.get("dependencies", [])]
        name, python = project["name"], project["requires-python"]
        found[name] = OwnDistribution(name, project["version"], {}, requires, python, "")
    return found


@pytest.mark.parametrize(("spec", "device"), SETS)
def test_a_set_holds_its_library_and_what_our_own_distributions_need(spec: EnvironmentSpec, device: str) -> None:
    pinned = pinned_set(spec, device)
    own = [declared()[name] for name in spec.distributions]
    assert unmet(own, pinned.versions, "3.11.7") == []
    assert misfit(spec, pinned.versions) is None


def test_what_a_set_lacks_is_seen() -> None:
    core = declared()["art-core"]
    assert "art-core needs packaging>=24; the set has none" in unmet([core], {"numpy": "2.4"}, "3.11.7")
