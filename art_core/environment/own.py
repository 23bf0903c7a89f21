"""Our own distributions in an environment: what runs here runs there, and no index is asked.

A virtual environment that holds a pinned set costs minutes and gigabytes; our own distributions change with every
release, or with every edit in a checkout. So they are not installed into it. Beside it stands a second directory of the
same shape: links to everything of the first, and copies of the files that our distributions' own records list here.
For an editable installation those are its metadata and the ``.pth`` file that leads to the checkout. Making one takes
milliseconds, and none is ever changed, so what runs in it is not changed beneath its feet.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from art_core.environment.built import Place
from art_core.environment.spec import applies
from art_core.errors import EnvironmentBuildError


@dataclass(frozen=True)
class OwnDistribution:
    """A distribution that is installed here and enters environments by path."""

    name: str
    version: str
    files: Mapping[str, Path]
    """Path below ``site-packages`` to the file here."""
    requires: Sequence[Requirement]
    """But for its extras."""
    requires_python: str
    digest: str
    """SHA-256 of its record."""


def own_distribution(name: str) -> OwnDistribution:
    """Look at a distribution as it is installed here.

    Args:
        name: Its name.

    Raises:
        EnvironmentBuildError: It is not installed, or its files are not known.
    """
    advice = f"install it with pip: {sys.executable} -m pip install {name}"
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise EnvironmentBuildError(f"{name} is to enter an environment and is not installed here; {advice}") from error
    record = found.read_text("RECORD")
    if record is None or found.files is None:
        raise EnvironmentBuildError(f"{name} {found.version} has no record of its files, so they can't enter; {advice}")
    files = {each.as_posix(): Path(str(each.locate())) for each in found.files if _enters(each.as_posix())}
    if "Root-Is-Purelib: true" not in (found.read_text("WHEEL") or ""):
        raise EnvironmentBuildError(f"{name} {found.version} was compiled for this interpreter and fits no other")
    return OwnDistribution(
        name=name,
        version=found.version,
        files=files,
        requires=[each for each in map(Requirement, found.requires or []) if "extra" not in str(each.marker)],
        requires_python=found.metadata["Requires-Python"] or "",
        digest=hashlib.sha256(record.encode()).hexdigest(),
    )


def unmet(own: Sequence[OwnDistribution], installed: Mapping[str, str], python: str) -> list[str]:
    """Requirements of our own distributions that a set of packages does not meet.

    Args:
        own: Those that enter together.
        installed: Canonical name to version: what the set holds.
        python: Version of Python, e.g. ``"3.11.7"``.

    Returns:
        A sentence each, e.g. ``"art-core needs httpx>=0.28; the set has 0.27"``.
    """
    together: dict[str, str] = {**installed, **{canonicalize_name(each.name): each.version for each in own}}
    problems = []
    for each in own:
        for requirement in each.requires:
            seen = together.get(canonicalize_name(requirement.name))
            needed = applies(requirement, python)
            if needed and (seen is None or not requirement.specifier.contains(seen, prereleases=True)):
                wanted = f"{requirement.name}{requirement.specifier}"
                problems.append(f"{each.name} needs {wanted}; the set has {seen or 'none'}")
    return problems


def packages(site: Path) -> dict[str, str]:
    """What is installed in a ``site-packages`` directory: canonical name to version."""
    found: Iterator[Distribution] = iter(distributions(path=[str(site)]))
    # one that was removed by halves has neither, and to ask for its name is an error or not, as Python's finder or the
    # backport's (where anybody has imported that) answers
    whole = (each for each in found if each.read_text("METADATA") or each.read_text("PKG-INFO"))
    return {canonicalize_name(each.metadata["Name"]): each.version for each in whole}


def with_own(place: Place, names: Sequence[str]) -> Path:
    """The interpreter of an environment that has our own distributions; made first if need be.

    Safe against any number of processes at once and against a kill at any instant: a directory is whole from the
    moment that it has its name.

    Args:
        place: A whole environment.
        names: Our distributions.

    Raises:
        EnvironmentBuildError: A distribution is not installed here, or the environment lacks what it needs.
    """
    own = [own_distribution(name) for name in names]
    digest = hashlib.sha256("".join(f"{each.name} {each.digest}\n" for each in own).encode()).hexdigest()
    target = place.directory / "with" / digest[:12]
    if not target.is_dir():
        built = place.built()
        (site,) = place.directory.glob("lib/python*/site-packages")
        problems = unmet(own, packages(site), built.python if built else "")
        if problems:
            raise EnvironmentBuildError(
                f"{place.directory} can't hold {', '.join(names)}: {'; '.join(problems)}; build it from a newer set: "
                f"art env create {place.part} --device {place.device}"
            )
        try:
            _add(place.directory, site, own, target)
        except OSError as error:
            raise EnvironmentBuildError(
                f"{target} can't be made: {error}; mend that, or set ART_CACHE elsewhere"
            ) from error
    return target / "bin" / "python"


def _enters(path: str) -> bool:
    """Whether a recorded file belongs below site-packages: not scripts, which name an interpreter, nor bytecode."""
    return not path.startswith(("../", "/")) and not path.endswith(".pyc")


def _add(environment: Path, site: Path, own: Sequence[OwnDistribution], target: Path) -> None:
    scratch = target.with_name(f".{uuid.uuid4().hex}")
    _mirror(environment, site, own, scratch)
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(scratch)  # another process was first, and its result is the same


def _mirror(environment: Path, site: Path, own: Sequence[OwnDistribution], target: Path) -> None:
    """Fill a directory with links to an environment, all but for `site-packages`, where our distributions are added."""
    ours = {Path(file).parts[0] for each in own for file in each.files}
    (target / site.relative_to(environment)).mkdir(parents=True)
    for level, left_out in (
        (environment, {"lib", "with", "pyvenv.cfg", "ready.json"}),
        (site.parents[1], {site.parent.name}),
        (site.parent, {site.name}),
        (site, ours),
    ):
        for entry in level.iterdir():
            if entry.name not in left_out:
                inside = entry.is_symlink() and not entry.readlink().is_absolute()  # lib64, which is to lead to our lib
                (target / entry.relative_to(environment)).symlink_to(entry.readlink() if inside else entry)
    shutil.copy2(environment / "pyvenv.cfg", target / "pyvenv.cfg")
    for each in own:
        for file, source in each.files.items():
            copy = target / site.relative_to(environment) / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
