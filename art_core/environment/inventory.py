"""The environments that there are: list them, remove them, look whether one still works."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from art_core.config import Timeouts
from art_core.environment.build import locked
from art_core.environment.built import Place, places
from art_core.environment.choice import interpreter, why_not
from art_core.environment.occupant import occupants
from art_core.environment.own import packages
from art_core.environment.spec import EnvironmentSpec, differences, pinned_set
from art_core.errors import ConfigError, EnvironmentBuildError, nearest


@dataclass(frozen=True)
class EnvironmentState:
    """An environment in a cache, whole or not."""

    name: str
    device: str
    directory: Path
    unused: str | None
    """Why no part would run in it, and what may be done about it; None where one would."""
    python: str | None
    """Version of its interpreter; None where it is not whole."""
    library: Mapping[str, str]
    size_bytes: int | None
    """Of the pinned set, as it was installed."""
    created: str | None


def list_environments(cache: Path, specs: Mapping[str, EnvironmentSpec]) -> list[EnvironmentState]:
    """Every environment in a cache.

    Args:
        cache: Where environments are kept.
        specs: What the installed plugins declare, by name.
    """
    return [_state(each, specs) for each in places(cache)]


def remove(
    name: str,
    cache: Path,
    specs: Mapping[str, EnvironmentSpec],
    unused_only: bool = False,
    force: bool = False,
) -> list[Path]:
    """Delete a part's environments.

    Args:
        name: The part's name; it need not be installed any more.
        cache: Where environments are kept.
        specs: What the installed plugins declare, by name.
        unused_only: Keep those that a part would run in.
        force: Delete also what processes run in; they fail at their next import.

    Returns:
        The directories that are gone.

    Raises:
        ConfigError: There is none of that name.
        EnvironmentBuildError: One is being built, a process runs in one, or one can't be deleted.
    """
    mine = [each for each in places(cache) if each.part == name]
    if not mine:
        raise ConfigError(f"there is no environment {name!r}; {nearest(name, {each.part for each in places(cache)})}")
    gone = [each for each in mine if not unused_only or _state(each, specs).unused]
    if not force:
        for each in gone:
            _require_empty(each)
    for each in gone:
        with locked(each, lambda where=each: _refuse(where)):  # type: ignore[misc]
            _delete(each)
    return [each.directory for each in gone]


def check(spec: EnvironmentSpec, cache: Path, device: str | None = None) -> tuple[str, list[str]]:
    """Look whether a part's library really works where it would run, by importing it there.

    Args:
        spec: Whose library.
        cache: Where environments are kept.
        device: Look at the environment for this one.

    Returns:
        The interpreter, and what is wrong with it.

    Raises:
        PluginUnusableError: There is no interpreter for it.
        EnvironmentBuildError: Our own distributions don't fit into it.
    """
    python = interpreter(spec, cache, device)
    return python, [*_differences(spec, Path(python), cache), *_imports(spec.modules, python)]


def _state(where: Place, specs: Mapping[str, EnvironmentSpec]) -> EnvironmentState:
    built, spec = where.built(), specs.get(where.part)
    if built is None:
        fix = f"art env create {where.part}, or art env remove {where.part}"
        unused: str | None = "it is being built" if _is_locked(where) else f"it is not whole; {fix}"
        return EnvironmentState(where.part, where.device, where.directory, unused, None, {}, None, None)
    if spec is None:
        unused = f"no installed plugin declares it; art env remove {where.part}"
    elif reason := why_not(spec, where, built):
        unused = f"{reason}; art env remove {where.part} --unused"
    else:
        unused = None
    return EnvironmentState(
        built.name, built.device, where.directory, unused, built.python, built.library, built.size_bytes, built.created
    )


def _is_locked(where: Place) -> bool:
    if not where.lock.exists():
        return False
    with where.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _refuse(where: Place) -> None:
    raise EnvironmentBuildError(
        f"{where.directory} is being built by another process; wait until that has ended, or stop it"
    )


def _require_empty(where: Place) -> None:
    inside = occupants(where.directory)
    if inside:
        named = "; ".join(f"{each.pid} ({each.program})" for each in inside[:3])
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise EnvironmentBuildError(
            f"{where.directory} is in use by process {named}{more}; stop that first, or give --force"
        )


def _delete(where: Place) -> None:
    """A kill on the way leaves an environment that is not whole, never half of one that looks it."""
    try:
        where.unfinish()
        shutil.rmtree(where.directory)
        where.log.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentBuildError(f"{where.directory} can't be deleted: {error}; give this user access") from error


def _differences(spec: EnvironmentSpec, python: Path, cache: Path) -> list[str]:
    """What a managed environment holds in other versions than its set says: somebody has changed it."""
    where = next((each for each in places(cache) if each.directory in python.parents), None)
    built = where.built() if where else None
    if where is None or built is None:
        return []
    (site,) = where.directory.glob("lib/python*/site-packages")
    wrong = differences(pinned_set(spec, built.device), packages(site), built.python)
    return [f"{each}; art env remove {spec.name}, then art env create {spec.name}" for each in wrong]


def _imports(modules: Sequence[str], python: str) -> list[str]:
    wrong = []
    for module in modules:
        command = [python, "-P", "-c", f"import {module}"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=Timeouts.library_import_s,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            wrong.append(f"import {module}: {error}")
            continue
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"ended with exit status {done.returncode}"])[-1]
            wrong.append(f"import {module}: {last}; see all of it by: {python} -c 'import {module}'")
    return wrong
