"""Which interpreter a part's library runs in: this one where it fits, else a managed environment's."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from art_core.device import driver_is_loaded
from art_core.environment.built import BuiltEnvironment, Place, places
from art_core.environment.own import with_own
from art_core.environment.spec import EnvironmentSpec, misfit, misfit_here, pinned_set, versions_here
from art_core.errors import PluginUnusableError


def interpreter(spec: EnvironmentSpec, cache: Path, device: str | None = None) -> str:
    """The interpreter to run a part's library in.

    Args:
        spec: What the library needs.
        cache: Where managed environments are kept.
        device: Take an environment for this one only; None: one for a GPU where this machine has one.

    Returns:
        This process's own interpreter where the library is installed here and fits; else the managed environment's,
        in which our own distributions are what they are here.

    Raises:
        PluginUnusableError: There is neither; the message says how to build one.
        EnvironmentBuildError: Our own distributions don't fit into the environment.
    """
    if misfit_here(spec) is None:
        return sys.executable
    found = find(spec, cache, device)
    if found is None:
        raise PluginUnusableError(f"{spec.name!r} has no interpreter to run in: {_reason(spec, cache, device)}")
    return str(with_own(found, spec.distributions))


def missing(spec: EnvironmentSpec, cache: Path, device: str | None = None) -> str | None:
    """Why a part's library can run nowhere here, and what to do about it; None where it can. Takes milliseconds.

    Args:
        spec: What the library needs.
        cache: Where managed environments are kept.
        device: Consider environments for this one only.
    """
    if misfit_here(spec) is None or find(spec, cache, device) is not None:
        return None
    return _reason(spec, cache, device)


def locate(spec: EnvironmentSpec, cache: Path) -> tuple[Path, Mapping[str, str]] | None:
    """Where a part's library would run, and its versions there; None where it can run nowhere. Changes nothing.

    Args:
        spec: What the library needs.
        cache: Where managed environments are kept.
    """
    if misfit_here(spec) is None:
        return Path(sys.executable), versions_here(spec)
    found = find(spec, cache)
    built = found.built() if found else None
    return (found.python, built.library) if found and built else None


def find(spec: EnvironmentSpec, cache: Path, device: str | None = None) -> Place | None:
    """The managed environment for a part, if there is one; see `interpreter`.

    Of several it is one for this machine's kind of device, then one of this interpreter's version, then the newest.
    """
    whole = [(each, built) for each in places(cache) if (built := each.built()) and why_not(spec, each, built) is None]
    fitting = [(each, built) for each, built in whole if device in (None, built.device)]
    if not fitting:
        return None
    preferred, tag = best_device(spec), sys.implementation.cache_tag
    return max(fitting, key=lambda pair: (pair[1].device == preferred, pair[1].tag == tag, pair[1].created))[0]


def why_not(spec: EnvironmentSpec, where: Place, built: BuiltEnvironment) -> str | None:
    """Why a whole environment does not serve a part; None where it does."""
    if built.name != spec.name:
        return f"it is for {built.name!r}"
    if built.device not in spec.requirements:
        return f"there is no set for {built.device} any more"
    if built.set_digest != pinned_set(spec, built.device).digest:
        return "it was built from another version of its set"
    if built.platform != sysconfig.get_platform():
        return f"it was built on {built.platform}"
    if not where.python.exists():
        return f"the interpreter that it was built with is gone: {where.python.resolve()}"
    return misfit(spec, built.library)


def best_device(spec: EnvironmentSpec) -> str:
    """The device to build for on this machine: a GPU where there is one and the spec has a set for it."""
    preferred = "gpu" if driver_is_loaded() else "cpu"
    return preferred if preferred in spec.requirements else next(iter(spec.requirements))


def _reason(spec: EnvironmentSpec, cache: Path, device: str | None) -> str:
    mine = [(each, built) for each in places(cache) if (built := each.built()) and built.name == spec.name]
    unfit = [f"{each.directory.name}: {why_not(spec, each, built)}" for each, built in mine]
    others = f"; environments that don't serve: {'; '.join(unfit)}" if unfit and device is None else ""
    fix = f"art env create {spec.name} --device {device or best_device(spec)}"
    return f"{misfit_here(spec)}, in {sys.executable}, and there is no environment for it{others}; try: {fix}"
