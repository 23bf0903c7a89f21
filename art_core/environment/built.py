"""The managed environments in a cache: where each stands and what it says of itself.

<cache>/environments/<name>-<device>-<python tag>-<digest>/        a virtual environment: the pinned set
ready.json         written last; without it the environment does not exist
with/<digest>/     the same, with our own distributions (`art_core.environment.own`)
<cache>/environments/<name>-<device>-<python tag>-<digest>.lock    held by who builds or removes it
<cache>/environments/<name>-<device>-<python tag>-<digest>.log     what pip said
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from art_core.disk import replace
from art_core.environment.python import Python

LAYOUT = 1
"""Raised when something is built differently from the same set, so that old environments are not used."""

_READY = "ready.json"
_log = logging.getLogger("art.environment")


@dataclass(frozen=True, kw_only=True)
class BuiltEnvironment:
    """A whole environment's own description."""

    name: str
    """The part's name."""
    device: str
    set_digest: str
    """Of the pinned set that it was built from."""
    python: str
    """Version of its interpreter."""
    tag: str
    """Of its interpreter, e.g. ``cpython-311``."""
    platform: str
    """What it was built on, e.g. ``linux-x86_64``: machines of two kinds may share a cache."""
    library: Mapping[str, str]
    """The part's library: distribution to version."""
    size_bytes: int
    created: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Place:
    """A directory that holds an environment, or is to hold one."""

    directory: Path

    @property
    def lock(self) -> Path:
        """File that is locked by who builds or removes the environment."""
        return self.directory.with_name(f"{self.directory.name}.lock")

    @property
    def log(self) -> Path:
        """File with everything that pip said."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def python(self) -> Path:
        """The interpreter with the pinned set alone."""
        return self.directory / "bin" / "python"

    @property
    def part(self) -> str:
        """Name of the part that it is for."""
        return self.directory.name.rsplit("-", 3)[0]

    @property
    def device(self) -> str:
        """The device that it is for."""
        return self.directory.name.rsplit("-", 3)[1]

    def built(self) -> BuiltEnvironment | None:
        """What it says of itself; None where it is not whole, or was built by another version of ART."""
        ready = self.directory / _READY
        if not ready.is_file():
            return None
        try:
            return TypeAdapter(BuiltEnvironment).validate_json(ready.read_bytes())
        except ValidationError as error:
            _log.debug("%s is of another version of ART", ready, exc_info=error)
            return None

    def finish(self, built: BuiltEnvironment) -> None:
        """Say that it is whole: the last thing that its builder does."""
        replace(self.directory / _READY, TypeAdapter(BuiltEnvironment).dump_json(built, indent=1))

    def unfinish(self) -> None:
        """Say that it is not whole any more: the first thing before it is deleted."""
        (self.directory / _READY).unlink(missing_ok=True)


def root(cache: Path) -> Path:
    """Where a cache keeps its environments."""
    return cache.expanduser().absolute() / "environments"


def place(cache: Path, name: str, device: str, python: Python, set_digest: str) -> Place:
    """Where the environment for these stands.

    Args:
        cache: The cache's root.
        name: The part's name.
        device: A device of its spec.
        python: The base interpreter.
        set_digest: Of the pinned set.
    """
    digest = hashlib.sha256(f"{LAYOUT} {set_digest} {python.platform}".encode()).hexdigest()
    return Place(root(cache) / f"{name}-{device}-{python.tag.replace('-', '')}-{digest[:12]}")


def places(cache: Path) -> list[Place]:
    """Every directory of environments in a cache, whole or not, sorted by name."""
    return [Place(each) for each in sorted(root(cache).glob("*-*-*-*")) if each.is_dir()]
