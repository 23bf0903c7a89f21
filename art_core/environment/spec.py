"""What a part's library needs in an interpreter of its own, and whether an interpreter's packages meet it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from art_core.errors import PluginContractError


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What a part's library needs in an interpreter of its own. Declared by a plugin, as `Part.environment`."""

    name: str
    """The part's name."""
    requirements: Mapping[str, Path]
    """Device (``cpu``, ``gpu``) to a pinned set that the plugin ships: the whole set, one ``name==version`` a line, for
    it is installed without looking for dependencies. It holds what our own distributions need too."""
    distributions: Sequence[str]
    """Our own distributions to enter by path, e.g. ``("art-core", "art-mine")``: as they are installed here."""
    library: Mapping[str, str]
    """Distribution to the versions that fit, any one of them suffices: ``{"mine": ">=2.1", "mine-cpu": "==2.1.*"}``."""
    modules: Sequence[str]
    """Top-level modules that must be importable, e.g. ``("mine",)``."""
    python: str = ">=3.11"
    """Versions of Python that the pinned sets are for."""
    space_bytes: int = 8 << 30
    """Free space that building the largest of them takes, with what pip downloads."""


@dataclass(frozen=True)
class PinnedSet:
    """A pinned set as it was read."""

    path: Path
    requirements: Sequence[Requirement]
    digest: str
    """SHA-256 of its lines, whatever their order and comments."""

    @property
    def versions(self) -> dict[str, str]:
        """Canonical name to the version that it is pinned to."""
        return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in self.requirements}

    @property
    def lines(self) -> list[str]:
        """One ``name==version`` each, sorted."""
        return sorted(str(each) for each in self.requirements)


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a requirement holds for a version of Python on this machine."""
    versions = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    return requirement.marker is None or requirement.marker.evaluate(versions)


def differences(pinned: PinnedSet, installed: Mapping[str, str], python: str) -> list[str]:
    """What packages lack of a pinned set, or hold in other versions.

    Args:
        pinned: The set.
        installed: Canonical name to version.
        python: Version of Python, e.g. ``"3.11.7"``.

    Returns:
        For example ``["numpy==2.4.6 (installed: none)"]``.
    """
    pins = [each for each in pinned.requirements if applies(each, python)]
    seen = [(each, installed.get(canonicalize_name(each.name))) for each in pins]
    return [
        f"{each} (installed: {version or 'none'})"
        for each, version in seen
        if version is None or not each.specifier.contains(version, prereleases=True)
    ]


def pinned_set(spec: EnvironmentSpec, device: str) -> PinnedSet:
    """Read a pinned set.

    Args:
        spec: Whose.
        device: A key of its `requirements`.

    Raises:
        PluginContractError: It can't be read, or a line is no ``name==version``.
    """
    path = spec.requirements[device]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PluginContractError(f"{spec.name!r}: the pinned set for {device} can't be read: {error}") from error
    requirements = [_requirement(path, line) for line in _lines(text)]
    own = {canonicalize_name(each) for each in spec.distributions}
    for each in requirements:
        if canonicalize_name(each.name) in own:
            raise PluginContractError(f"{path} pins {each.name}, which enters by path; take that line out")
    digest = hashlib.sha256("\n".join(sorted(map(str, requirements))).encode()).hexdigest()
    return PinnedSet(path, requirements, digest)


def misfit(spec: EnvironmentSpec, installed: Mapping[str, str]) -> str | None:
    """Why packages don't hold the library in a version that fits; None where they do.

    Args:
        spec: What is needed.
        installed: Name to version.
    """
    versions = {canonicalize_name(name): seen for name, seen in installed.items()}
    found = {name: seen for name in spec.library if (seen := versions.get(canonicalize_name(name)))}
    if any(SpecifierSet(spec.library[name]).contains(seen, prereleases=True) for name, seen in found.items()):
        return None
    wanted = " or ".join(f"{name}{fitting}" for name, fitting in spec.library.items())
    seen = ", ".join(f"{name} {each}" for name, each in found.items()) or "none of it"
    return f"needs {wanted}; installed: {seen}"


def misfit_here(spec: EnvironmentSpec) -> str | None:
    """Why this interpreter does not hold the library; None where it does. Imports nothing of it."""
    reason = misfit(spec, versions_here(spec))
    absent = [module for module in spec.modules if find_spec(module) is None]
    if reason is None and absent:
        reason = f"{', '.join(absent)} can't be imported"
    return reason


def versions_here(spec: EnvironmentSpec) -> dict[str, str]:
    """What this interpreter holds of the library: distribution to version."""
    return {name: found for name in spec.library if (found := _version(name))}


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        stripped = line.partition(" #")[0].strip()
        if stripped and not stripped.startswith("#"):
            yield stripped


def _requirement(path: Path, line: str) -> Requirement:
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise PluginContractError(f"{path}: {line!r} is no 'name==version': {error}") from error
    operators = [each.operator for each in requirement.specifier]
    if requirement.url or operators != ["=="] or str(requirement.specifier).endswith("*"):
        raise PluginContractError(f"{path}: {line!r} is not pinned; write 'name==version'")
    return requirement


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
