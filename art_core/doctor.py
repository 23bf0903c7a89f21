"""What this installation is, what a run here would use, and what stands in its way. Starts and changes nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import cast

from art_core.config import Environment
from art_core.device import Machine, machine
from art_core.environment import EnvironmentSpec, locate, missing
from art_core.errors import ConfigError, PluginError
from art_core.part import Part
from art_core.plugins import KINDS, Kind, PluginReport, Plugins
from art_core.publication import select_publishers
from art_core.selection import PublisherSelection, Selection, select

LOW_SPACE_BYTES = 2 << 30
"""Below this much free space a warning is given: a converted small model and a few dozen checkpoints."""


@dataclass(frozen=True)
class Package:
    """A distribution that ART or one of its plugins needs."""

    name: str
    version: str | None
    """None: not installed."""
    wanted: str
    """The requirement, as it is declared."""
    by: str
    """The distribution that declares it."""


@dataclass(frozen=True)
class PartState:
    """A part of a plugin, and whether it can work here."""

    kind: Kind
    priority: int
    contract_version: int
    capabilities: Mapping[str, str]
    """Capability to its degree: ``full``, or ``since <version>``."""
    options: Sequence[str]
    unusable: str | None
    """Why it can't work here and what would mend that; None where it can."""


@dataclass(frozen=True)
class PluginState:
    """An installed plugin."""

    name: str
    distribution: str
    version: str
    parts: Sequence[PartState]
    error: str | None
    """Why nothing of it can be used; None where it is whole."""


@dataclass(frozen=True)
class ChoiceState:
    """What a run here would get for one kind of part."""

    kind: Kind
    name: str | None
    """None: none can be had."""
    reason: str


@dataclass(frozen=True)
class LibraryState:
    """A part's library that may live in an interpreter of its own."""

    name: str
    """The part's name."""
    interpreter: Path | None
    """Where it would run; None: nowhere."""
    versions: Mapping[str, str]
    missing: str | None
    """Why it can run nowhere here, and what to do about it; None where it can."""


@dataclass(frozen=True)
class Place:
    """A directory that runs write to."""

    what: str
    path: Path
    writable: bool
    free_bytes: int


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    what: str
    """What is wrong, and the next step to take."""
    stops: bool
    """Whether no run could start here."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `examine` found."""

    python: str
    """The interpreter's version."""
    interpreter: Path
    """Where engine, trainer and this command run."""
    machine: Machine
    visible_gpus: str | None
    """``CUDA_VISIBLE_DEVICES``; None where it is not set."""
    packages: Sequence[Package]
    plugins: Sequence[PluginState]
    libraries: Sequence[LibraryState]
    choices: Sequence[ChoiceState]
    places: Sequence[Place]
    problems: Sequence[Problem]
    can_start: bool


def examine(selections: Mapping[Kind, Selection], root: Path) -> Diagnosis:
    """Look at everything that a run here would depend on.

    Args:
        selections: Parts that the caller would choose; others as for any run.
        root: Where runs would be written.
    """
    environment, plugins, this = Environment.read(), Plugins(), machine()
    states = plugin_states(plugins)
    packages = list(_packages(states))
    choices = [_choice(plugins, kind, selections.get(kind), environment) for kind in KINDS]
    places = [_place("runs", root), _place("converted models", environment.cache)]
    problems = [*_problems_of_parts(states, choices), *_problems_of_the_machine(this, packages, places)]
    return Diagnosis(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        interpreter=Path(sys.executable),
        machine=this,
        visible_gpus=environment.cuda_visible_devices,
        packages=packages,
        plugins=states,
        libraries=[_library(spec, environment.cache) for spec in plugins.environments().values()],
        choices=choices,
        places=places,
        problems=problems,
        can_start=not any(problem.stops for problem in problems),
    )


def plugin_states(plugins: Plugins) -> list[PluginState]:
    """Every installed plugin by name, the broken ones with the reason."""
    return [_plugin_state(plugins, report) for report in plugins.report()]


def _plugin_state(plugins: Plugins, report: PluginReport) -> PluginState:
    parts = [_part_state(plugins, part) for part in report.parts]
    return PluginState(report.name, report.distribution, report.version, parts, report.error)


def _part_state(plugins: Plugins, part: Part) -> PartState:
    declared = {c: support for c, support in part.capabilities.declared.items() if c in part.capabilities}
    degrees = {c.value: f"{support.degree} {support.version or ''}".rstrip() for c, support in declared.items()}
    (kind,) = (kind for kind, cls in KINDS.items() if isinstance(part, cls))
    options = tuple(part.options.model_fields)
    return PartState(kind, part.priority, part.contract_version, degrees, options, plugins.unusable(part))


def _library(spec: EnvironmentSpec, cache: Path) -> LibraryState:
    located = locate(spec, cache)
    interpreter, versions = located or (None, {})
    return LibraryState(spec.name, interpreter, versions, missing(spec, cache))


def _choice(plugins: Plugins, kind: Kind, selection: Selection, environment: Environment) -> ChoiceState:
    try:
        if kind == "publisher":
            chosen = select_publishers(plugins, cast(PublisherSelection, selection), environment)
        else:
            chosen = [select(plugins, kind, selection, environment)]
    except (PluginError, ConfigError) as error:
        return ChoiceState(kind, None, str(error))
    return ChoiceState(kind, ", ".join(each.part.name for each in chosen), chosen[0].reason)


def _packages(plugins: Sequence[PluginState]) -> Iterator[Package]:
    """What core and every plugin's distribution need, but for their extras."""
    mine = __package__.replace("_", "-")
    yield Package(mine, version(mine), "", "")
    for owner in dict.fromkeys([mine, *(plugin.distribution for plugin in plugins)]):
        for line in _requirements(owner):
            wanted = line.partition(";")[0].strip()
            found = re.match(r"[\w.-]+", wanted)
            if found and not re.search(r";.*\bextra\b", line) and found[0] != mine:
                yield Package(found[0], _version(found[0]), wanted, owner)


def _requirements(distribution: str) -> list[str]:
    try:
        return requires(distribution) or []
    except PackageNotFoundError:  # its metadata is broken; the plugin's line says so
        return []


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _place(what: str, path: Path) -> Place:
    path = path.expanduser().absolute()
    standing = next(each for each in (path, *path.parents) if each.exists())
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    return Place(what, path, writable, shutil.disk_usage(standing).free)


def _problems_of_parts(plugins: Sequence[PluginState], choices: Sequence[ChoiceState]) -> Iterator[Problem]:
    for choice in choices:
        if choice.name is None:
            yield Problem(choice.reason, stops=True)
    for plugin in plugins:
        if plugin.error:
            advice = f"upgrade or uninstall {plugin.distribution}"
            yield Problem(f"plugin {plugin.name!r} is broken: {plugin.error}; {advice}", stops=False)


def _problems_of_the_machine(this: Machine, packages: Sequence[Package], places: Sequence[Place]) -> Iterator[Problem]:
    if this.gpu_problem:
        yield Problem(this.gpu_problem, stops=False)
    for package in packages:
        if package.version is None:
            advice = f"pip install '{package.wanted}'"
            yield Problem(f"{package.by} needs {package.wanted}, which is not installed; {advice}", stops=False)
    for place in places:
        if not place.writable:
            # a model in a local directory needs no conversion, so the cache alone stops nothing
            advice = "give this user access or choose another path"
            yield Problem(f"{place.path} ({place.what}) can't be written; {advice}", stops=place.what == "runs")
        elif place.free_bytes < LOW_SPACE_BYTES:
            free = f"{place.free_bytes / 1e9:.1f} GB free"
            yield Problem(f"{place.path} ({place.what}) has {free}; free some space there", stops=False)
