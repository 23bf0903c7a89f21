"""Where a demo lives on disk, and what an earlier start of it settled."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from art_core import disk
from art_core.errors import ConfigError
from art_core.run import RunDirectory, RunRecord

T = TypeVar("T")

PROJECT, RUN = "demo", "json-facts"


@dataclass(frozen=True)
class Place:
    """A root that holds runs, and one run in it."""

    root: Path
    project: str = PROJECT
    run: str = RUN

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.root / self.project / "models" / self.run

    @property
    def record(self) -> RunRecord | None:
        """What the run was made for; None where there is no run yet."""
        return RunDirectory(self.directory).record() if (self.directory / "run.json").exists() else None

    @property
    def path(self) -> Path:
        """What `find_place` takes to come here again."""
        return self.root if self == Place(self.root) else self.directory


def find_place(path: Path | None) -> Place:
    """Where to run.

    Args:
        path: A root, new or old, or a run's own directory; None makes a fresh root under ``.art``.

    Raises:
        ConfigError: The path can't be a root.
        StoreError: The system refuses to make a fresh one.
    """
    if path is None:
        return Place(_fresh_root(Path(".art").absolute()))
    path = path.expanduser().absolute()
    if (path / "run.json").is_file():
        if path.parent.name != "models":
            raise ConfigError(f"{path} holds run.json, but does not end in <project>/models/<run>; give the runs' root")
        return Place(path.parents[2], project=path.parents[1].name, run=path.name)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is not a directory; give one, or leave --path out for a fresh one")
    return Place(path)


def _fresh_root(parent: Path) -> Path:
    with disk.disk_errors("make a directory for the demo (--path names another)"):
        parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("demo-%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        root = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            root.mkdir()
        except FileExistsError:
            continue
        return root
    raise ConfigError(f"{parent / stamp} and its successors are taken; give --path")


def settle(what: str, made_with: T | None, wanted: T | None, default: T) -> T:
    """A setting that the first start of a run fixes for all later ones.

    Args:
        what: The setting's name.
        made_with: The run's value; None where there is no run yet.
        wanted: What this start asks for; None leaves it open.
        default: For a new run that leaves it open.

    Raises:
        ConfigError: The run was made with another value.
    """
    if made_with is None:
        return default if wanted is None else wanted
    if wanted not in (None, made_with):
        raise ConfigError(f"the run was made with {what} {made_with!r}, not {wanted!r}; leave it out to go on")
    return made_with


def read_history(place: Place) -> list[dict[str, Any]]:
    """The run's training steps so far, oldest first, one record of metrics each."""
    records = RunDirectory(place.directory).history()
    steps = {record["step"]: record for record in records if "train/reward" in record}
    return [steps[step] for step in sorted(steps)]
