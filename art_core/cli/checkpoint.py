"""``art checkpoints list``, ``show`` and ``verify``: what runs have stored, and whether every byte is as it should be.

They read only, and take no lock: a run may go on while it is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from art_core.cli import remote
from art_core.cli.progress import ByteBar, bytes_in
from art_core.cli.remote import DIGEST_LENGTH, REWARD
from art_core.cli.run import find_runs
from art_core.cli.store import JsonOption, RunOption, StoreOption
from art_core.cli.table import megabytes, say, show
from art_core.errors import CheckpointCorruptError, CheckpointError, StoreError

if TYPE_CHECKING:
    from art_core.checkpoint import Manifest

app = typer.Typer(help="What runs have stored, on this machine and in stores.", no_args_is_help=True)

PathOption = Annotated[
    Path, typer.Option("--path", help="A root of runs (.art), a run's directory, or its checkpoints directory.")
]


@dataclass(frozen=True)
class Listed:
    """What a manifest says of one step."""

    run: str
    step: int | None
    """None where its directory's name is no number."""
    directory: Path
    size_bytes: int | None = None
    """Of the files that are there."""
    dropped: Sequence[str] = ()
    """Files that were let go on purpose."""
    adapter_digest: str | None = None
    updated: bool | None = None
    parent: int | None = None
    reward: float | None = None
    """Mean reward of what it was trained on; None where neither the manifest nor the run's history says."""
    problem: str | None = None
    """Why it is no whole checkpoint."""


@dataclass(frozen=True)
class Verified:
    """What came of reading every byte of one step."""

    run: str
    step: int | None
    directory: Path
    files: int
    size_bytes: int
    problem: str | None
    """Which file is not as its manifest says, or can't be read."""


@app.command(name="list")
def list_(
    path: PathOption = Path(".art"), store: StoreOption = None, run: RunOption = None, json: JsonOption = False
) -> None:
    """List the stored steps: what their manifests say, without reading the files."""
    if store is not None:
        remote.list_store(store, run, json)
        return
    found = [_listed(each, step, rewards) for each, rewards in _with_rewards(path, run) for step in steps_of(each)]
    if json:
        _echo(found)
        return
    columns = ("run", "step", "size", "adapter", "updated", "parent", "reward", "dropped", "whole")
    show(Console(), f"checkpoints of {path}", columns, [_row(path, each) for each in found])


@app.command()
def verify(
    path: PathOption = Path(".art"), store: StoreOption = None, run: RunOption = None, json: JsonOption = False
) -> None:
    """Read every byte of every stored step. The exit code is 1 where one is not as its manifest says."""
    if store is not None:
        raise typer.Exit(remote.verify_store(store, run, json))
    console, done = Console(), []
    steps = [(each, step, bytes_in(step)) for each in find_runs(path, run) for step in steps_of(each)]
    with ByteBar("verifying") as bar:
        bar.expect(sum(size for _, _, size in steps))
        for run_path, step, size in steps:
            if (seen := _verified(run_path, step)) is not None:
                done.append(seen)
            if seen is not None and not json:
                there = f"{seen.files} files, {megabytes(seen.size_bytes)}"
                what = f"FAILED: {seen.problem}" if seen.problem else f"ok: {there}"
                say(console, f"{_label(path, run_path)} {step.name} {what}")
            bar.add(size)
    if json:
        _echo(done)
    elif not done:
        say(console, f"no checkpoint in {path}")
    raise typer.Exit(1 if any(each.problem for each in done) else 0)


def steps_of(run: Path) -> list[Path]:
    """What stands in a run's checkpoints directory, by name, but for what is being written or deleted.

    Of a run that another backend wrote the steps only: of the rest nobody asks us what it is.
    """
    from art_core.foreign_run import foreign_steps, is_foreign

    with os.scandir(run / "checkpoints") as entries:
        found = sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))
    return [each for each in found if is_foreign(each)] if foreign_steps(run) else found


def _with_rewards(path: Path, run: str | None) -> Iterator[tuple[Path, Mapping[int, float]]]:
    from art_core.run import RunDirectory

    for each in find_runs(path, run):
        lines = RunDirectory(each).history()
        yield each, {line["training_step"]: line[REWARD] for line in lines if {"training_step", REWARD} <= line.keys()}


def _listed(run: Path, directory: Path, rewards: Mapping[int, float]) -> Listed:
    from art_core.checkpoint import check_layout

    try:
        manifest = _manifest(run, directory)
        there = check_layout(directory, manifest)
    except (CheckpointError, StoreError) as error:
        return Listed(_name(run), _number(directory), directory, problem=str(error))
    return Listed(
        run=_name(run),
        step=manifest.step,
        directory=directory,
        size_bytes=sum(manifest.files[name].size_bytes for name in there),
        dropped=sorted(manifest.files.keys() - set(there)),
        adapter_digest=manifest.adapter_digest,
        updated=manifest.updated,
        parent=manifest.parent,
        reward=manifest.metrics.get(REWARD, rewards.get(manifest.step)),
    )


def _manifest(run: Path, directory: Path) -> Manifest:
    """A step's manifest, if it stands where a store would look for it; never through a link."""
    from art_core.checkpoint import read_manifest
    from art_core.foreign_run import is_foreign
    from art_core.run import RunDirectory

    if directory.is_symlink() or not directory.is_dir():
        raise CheckpointCorruptError(f"{directory} is a file or a link, not a directory; remove it")
    if not (run / "run.json").exists() and is_foreign(directory):
        raise CheckpointCorruptError(
            f"written by openpipe-art's own backend, without a manifest: nothing says what its bytes were; it is "
            f"looked at when a run starts from it: art checkpoints fork --from {run}@{directory.name} --run "
            f"<project>/<new>"
        )
    manifest = read_manifest(directory)
    if directory != RunDirectory(run).step_directory(manifest.step):
        raise CheckpointCorruptError(f"{directory} holds the manifest of step {manifest.step}; rename or remove it")
    return manifest


def _name(run: Path) -> str:
    return f"{run.parents[1].name}/{run.name}"


def _number(directory: Path) -> int | None:
    return int(directory.name) if directory.name.isascii() and directory.name.isdecimal() else None


def _label(path: Path, run: Path) -> str:
    """The run as it differs from others below the path: ``<project>/<run>``."""
    inside = run.relative_to(path.absolute()) if run.is_relative_to(path.absolute()) else Path()
    return inside.as_posix().replace("/models/", "/") if inside.name else run.name


def _row(path: Path, each: Listed) -> tuple[str, ...]:
    label = _label(path, each.directory.parent.parent)
    if each.problem:
        return label, each.directory.name, "-", "-", "-", "-", "-", "-", f"NO: {each.problem}"
    return (
        label,
        each.directory.name,
        megabytes(each.size_bytes),
        (each.adapter_digest or "")[:DIGEST_LENGTH],
        "yes" if each.updated else "no",
        "-" if each.parent is None else str(each.parent),
        "-" if each.reward is None else f"{each.reward:.3f}",
        ", ".join(each.dropped) or "-",
        "yes",
    )


def _verified(run: Path, directory: Path) -> Verified | None:
    """None for a step that the run deleted while it was being read."""
    from art_core.checkpoint import check_layout
    from art_core.checkpoint import verify as verify_bytes

    try:
        manifest = verify_bytes(directory, _manifest(run, directory))
        sizes = [manifest.files[name].size_bytes for name in check_layout(directory, manifest)]
    except (CheckpointError, StoreError) as error:
        gone = not directory.exists()
        return None if gone else Verified(_name(run), _number(directory), directory, 0, 0, str(error))
    return Verified(_name(run), manifest.step, directory, len(sizes), sum(sizes), None)


def _echo(found: object) -> None:
    from pydantic_core import to_json

    typer.echo(to_json(found, indent=1))
