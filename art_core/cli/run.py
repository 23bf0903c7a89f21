"""The runs of this machine, as the commands are told of them: by a path, and by ``<project>/<run>``."""

from __future__ import annotations

from pathlib import Path

from art_core import disk
from art_core.cli.store import key_of
from art_core.errors import ConfigError, nearest


def find_runs(path: Path, run: str | None = None) -> list[Path]:
    """Directories of the runs that a path stands for, by name.

    Args:
        path: A root, a run's directory, or its ``checkpoints``.
        run: Only this one, ``<project>/<run>``.

    Raises:
        ConfigError: It is none of these, or it holds no such run.
        StoreError: The system refuses to look.
    """
    path = path.absolute()
    with disk.disk_errors(f"look for runs in {path}"):
        runs = _runs(path)
    if not runs:
        raise ConfigError(
            f"there is no run in {path}; give --path a root (.art unless told otherwise), a run's directory "
            f"(<root>/<project>/models/<run>) or its checkpoints directory"
        )
    return runs if run is None else _named(runs, str(key_of(run)), path)


def _runs(path: Path) -> list[Path]:
    if path.name == "checkpoints" and path.is_dir():
        return [path.parent]
    if (path / "checkpoints").is_dir():
        return [path]
    # the second pattern: a directory of roots, as the demo leaves one for each of its runs
    patterns = ("*/models/*/checkpoints", "*/*/models/*/checkpoints")
    return sorted(each.parent for pattern in patterns for each in path.glob(pattern) if each.is_dir())


def find_run(path: Path, run: str) -> Path:
    """The directory of one run.

    Args:
        path: As for `find_runs`.
        run: ``<project>/<run>``.

    Raises:
        ConfigError: There is none, or more than one.
    """
    found = find_runs(path, run)
    if len(found) > 1:
        roots = ", ".join(str(each.parents[2]) for each in found)
        raise ConfigError(f"run {run!r} stands below each of {roots}; give one of these as --path")
    return found[0]


def find_own_run(path: Path, run: str) -> Path:
    """The directory of one run of ours.

    Args:
        path: As for `find_runs`.
        run: ``<project>/<run>``.

    Raises:
        ConfigError: There is none, or more than one; or another backend wrote it, and it stays as it is.
    """
    from art_core.foreign_run import foreign_steps

    found = find_run(path, run)
    if steps := foreign_steps(found):
        raise ConfigError(
            f"run {run!r} was written by openpipe-art's own backend (newest step: {steps[-1]}), without manifests, and "
            f"stays as it is; start one of ours from it: art checkpoints fork --from {found} --run <project>/<new>"
        )
    return found


def _named(runs: list[Path], run: str, path: Path) -> list[Path]:
    names = {each: f"{each.parent.parent.name}/{each.name}" for each in runs}
    found = [each for each, name in names.items() if name == run]
    if not found:
        raise ConfigError(f"there is no run {run!r} in {path}; {nearest(run, set(names.values()))}")
    return found
