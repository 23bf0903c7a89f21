"""Build a managed environment: venv and pip, at its final path, under a lock, with ``ready.json`` as the last write.

A virtual environment's scripts hold its path, so it is not built elsewhere and renamed. Whoever holds the lock owns the
directory; one without ``ready.json`` is what a builder left that was stopped, and the next builder removes it. pip ends
with its builder, also when that is killed (`art_core.guard`), and the kernel then frees the lock.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from art_core.environment.built import BuiltEnvironment, Place, place
from art_core.environment.choice import best_device
from art_core.environment.own import own_distribution, packages, unmet, with_own
from art_core.environment.pip import advice, install
from art_core.environment.python import Python, describe_python
from art_core.environment.spec import EnvironmentSpec, PinnedSet, differences, misfit, pinned_set
from art_core.errors import ConfigError, EnvironmentBuildError, PluginContractError, nearest

Report = Callable[[str], None]


@dataclass(frozen=True)
class _Plan:
    spec: EnvironmentSpec
    device: str
    pinned: PinnedSet
    python: Python
    place: Place

    def stands(self) -> bool:
        """Whether the environment is whole, and so is what it was built with."""
        return self.place.built() is not None and self.place.python.exists()


def create(
    spec: EnvironmentSpec,
    cache: Path,
    device: str | None = None,
    *,
    python: str | None = None,
    dry_run: bool = False,
    report: Report = print,
) -> Path:
    """Build a part's environment, unless it stands already.

    Any number of processes may call this at once: one builds, the others wait for it. A kill at any instant leaves
    nothing that would be used.

    Args:
        spec: What to build.
        cache: Where environments are kept.
        device: A key of ``spec.requirements``; None: a GPU's where this machine has one.
        python: Base interpreter, a path or a command; None: this process's own.
        dry_run: Only say what would be installed, and where.
        report: Gets a line for each thing that happens.

    Returns:
        The environment's interpreter, with our own distributions; with `dry_run`, where the environment would stand.

    Raises:
        ConfigError: There is no set for the device, or the interpreter does not fit.
        PluginContractError: The pinned set is no pinned set, or lacks what our own distributions need.
        EnvironmentBuildError: Too little space, or pip failed: the message has its last lines and what to try.
    """
    plan = _plan(spec, cache, device, python)
    if dry_run:
        _say(plan, report)
        return plan.place.directory
    if not plan.stands():
        _require_space(plan)
        with locked(plan.place, lambda: report(f"another process is building {plan.place.directory}; waiting for it")):
            if not plan.stands():
                _build(plan, report)
    return with_own(plan.place, spec.distributions)


def _plan(spec: EnvironmentSpec, cache: Path, device: str | None, command: str | None) -> _Plan:
    device = device or best_device(spec)
    if device not in spec.requirements:
        raise ConfigError(f"{spec.name!r} has no set for {device!r}; {nearest(device, spec.requirements)}")
    pinned, python = pinned_set(spec, device), describe_python(command)
    own = [own_distribution(name) for name in spec.distributions]
    wanted = [("the sets of " + repr(spec.name), spec.python), *((each.name, each.requires_python) for each in own)]
    for who, versions in wanted:
        if not SpecifierSet(versions).contains(python.version, prereleases=True):
            raise ConfigError(
                f"{python.executable} is Python {python.version} and {who} needs {versions}; name another interpreter "
                f"with --python"
            )
    if problems := unmet(own, pinned.versions, python.version):
        raise PluginContractError(f"{pinned.path} lacks what enters its environment: {'; '.join(problems)}")
    return _Plan(spec, device, pinned, python, place(cache, spec.name, device, python, pinned.digest))


def _say(plan: _Plan, report: Report) -> None:
    if plan.stands():
        report(f"nothing to do: {plan.place.directory} stands")
        return
    report(f"would build {plan.place.directory}")
    report(f"with {plan.python.executable} (Python {plan.python.version}, {plan.python.platform})")
    report(f"from {plan.pinned.path}, by pip, without looking for dependencies:")
    for line in plan.pinned.lines:
        report(f"  {line}")
    report("and, as they are installed here:")
    for name in plan.spec.distributions:
        report(f"  {name} {own_distribution(name).version}")


def _require_space(plan: _Plan) -> None:
    directory = plan.place.directory
    standing = next(each for each in directory.parents if each.exists())
    free, needed = shutil.disk_usage(standing).free, plan.spec.space_bytes
    if free < needed:
        raise EnvironmentBuildError(
            f"{standing} has {free / 1e9:.1f} GB free and building {directory.name} takes {needed / 1e9:.1f} GB; free "
            f"some space there (art env list, art env remove), or set ART_CACHE to another file system"
        )


@contextmanager
def locked(where: Place, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build or remove an environment; the kernel frees it when this process ends.

    Args:
        where: The environment's.
        wait: Called before waiting for another process that holds it; may raise instead.

    Raises:
        EnvironmentBuildError: The cache can't be written.
    """
    try:
        where.lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(where.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EnvironmentBuildError(f"{where.lock} can't be opened: {error}; set ART_CACHE elsewhere") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _build(plan: _Plan, report: Report) -> None:
    where, started = plan.place, datetime.datetime.now(datetime.UTC)
    if where.directory.exists():
        report(f"removing {where.directory}, which is not whole")
        shutil.rmtree(where.directory)
    report(f"building {where.directory} with {plan.python.executable} (Python {plan.python.version})")
    try:
        install(where, plan.python.executable, plan.pinned, report)
        library = _verify(plan, next(where.directory.glob("lib/python*/site-packages")))
        size_bytes = sum(each.lstat().st_size for each in where.directory.rglob("*"))
        os.sync()  # the files before the word that they are whole
    except BaseException as error:
        shutil.rmtree(where.directory, ignore_errors=True)  # what pip downloaded stays in its cache
        if isinstance(error, OSError):
            raise EnvironmentBuildError(f"{where.directory} can't be built: {error}; {advice(str(error))}") from error
        raise
    built = BuiltEnvironment(
        name=plan.spec.name,
        device=plan.device,
        set_digest=plan.pinned.digest,
        python=plan.python.version,
        tag=plan.python.tag,
        platform=plan.python.platform,
        library=library,
        size_bytes=size_bytes,
        created=started.isoformat(timespec="seconds"),
    )
    where.finish(built)
    minutes = (datetime.datetime.now(datetime.UTC) - started).total_seconds() / 60
    report(f"built {where.directory}: {size_bytes / 1e9:.1f} GB in {minutes:.1f} minutes")


def _verify(plan: _Plan, site: Path) -> dict[str, str]:
    """The library's versions in a new environment, which must hold what its set pins."""
    installed = packages(site)
    if wrong := differences(plan.pinned, installed, plan.python.version):
        raise EnvironmentBuildError(
            f"pip ended well and did not install {', '.join(wrong)}; look at {plan.place.log} and at `pip config list`"
        )
    if reason := misfit(plan.spec, installed):
        raise PluginContractError(f"{plan.pinned.path} does not install its own library: {reason}")
    return {name: version for name in plan.spec.library if (version := installed.get(canonicalize_name(name)))}
