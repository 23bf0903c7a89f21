"""The checkpoint commands that look into a store, and the one that shows a step wherever it is."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json
from rich.console import Console

from art_core.cli.progress import ByteBar
from art_core.cli.run import find_own_run
from art_core.cli.store import (
    JsonOption,
    NeededRunOption,
    StoreOption,
    entries,
    key_of,
    store_of,
    wait,
)
from art_core.cli.table import megabytes, say, show
from art_core.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from art_core.protocols.store import CheckpointStore, StoreEntry
    from art_core.run_key import RunKey

REWARD = "train/reward"
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Held:
    """A step in a store, and what came of reading it, where it was read."""

    run: str
    step: int
    size_bytes: int
    adapter_digest: str
    dropped: list[str]
    reward: float | None
    problem: str | None = None


def list_store(store: str, run: str | None, json: bool) -> None:
    """List what a store holds."""
    found = wait(_list(store_of(store), run))
    if json:
        typer.echo(to_json(found, indent=1))
        return
    columns = ("run", "step", "size", "adapter", "dropped", "reward")
    show(Console(), f"checkpoints in {store}", columns, [_row(each) for each in found])


def verify_store(store: str, run: str | None, json: bool) -> int:
    """Fetch every step of a store, and read every byte; 1 where one is not as its manifest says."""
    found = wait(_verify(store_of(store), run))
    if json:
        typer.echo(to_json(found, indent=1))
    for each in () if json else found:
        what = f"FAILED: {each.problem}" if each.problem else f"ok: {megabytes(each.size_bytes)}"
        say(Console(), f"{each.run} {each.step:04d} {what}")
    return 1 if any(each.problem for each in found) else 0


def show_step(
    step: Annotated[int, typer.Argument(help="The step's number.")],
    run: NeededRunOption,
    store: StoreOption = None,
    path: Annotated[Path, typer.Option("--path", help="Root of runs on this machine.")] = Path(".art"),
    json: JsonOption = False,
) -> None:
    """Show a step's manifest: files, base model, where it comes from, metrics, versions."""
    entry = wait(_entry(store, run, step, path))
    if json:
        typer.echo(to_json({"manifest": entry.manifest, "dropped": sorted(entry.dropped)}, indent=1))
        return
    manifest, console = entry.manifest, Console()
    files = [
        (name, megabytes(file.size_bytes), "dropped" if name in entry.dropped else file.sha256)
        for name, file in manifest.files.items()
    ]
    show(console, f"step {step} of {run}", ("file", "size", "sha256"), files)
    origin = manifest.origin or ("-" if manifest.parent is None else f"step {manifest.parent}")
    facts = [("base model", manifest.base_model.name), ("trained from", origin)]
    facts += [(name, f"{value:.6g}") for name, value in manifest.metrics.items()]
    facts += [(f"version of {name}", version) for name, version in manifest.versions.items()]
    show(console, "recorded", ("what", "value"), facts)


async def _entry(store: str | None, run: str, step: int, path: Path) -> StoreEntry:
    from art_core.file_store import FileStore
    from art_core.transfer import find

    opened = FileStore(find_own_run(path, run).parents[2]) if store is None else store_of(store)
    return await find(opened, key_of(run), step)


async def _list(store: CheckpointStore, run: str | None) -> list[Held]:
    return [_held(key, each) async for key, steps in entries(store, run) for each in steps]


async def _verify(store: CheckpointStore, run: str | None) -> list[Held]:
    every = [(key, each) async for key, steps in entries(store, run) for each in steps]
    found = []
    with ByteBar("verifying") as bar, tempfile.TemporaryDirectory(prefix="art-verify-") as scratch:
        bar.expect(sum(each.size_bytes for _, each in every))
        for key, each in every:
            problem = None
            try:
                with tempfile.TemporaryDirectory(dir=scratch) as directory:
                    bar.watch(Path(directory))
                    await store.fetch(key, each.step, Path(directory))
            except (CheckpointError, StoreError) as error:
                problem = str(error)
            found.append(_held(key, each, problem))
            bar.add(each.size_bytes)
    return found


def _held(run: RunKey, entry: StoreEntry, problem: str | None = None) -> Held:
    return Held(
        run=str(run),
        step=entry.step,
        size_bytes=entry.size_bytes,
        adapter_digest=entry.manifest.adapter_digest,
        dropped=sorted(entry.dropped),
        reward=entry.manifest.metrics.get(REWARD),
        problem=problem,
    )


def _row(each: Held) -> tuple[str, ...]:
    return (
        each.run,
        f"{each.step:04d}",
        megabytes(each.size_bytes),
        each.adapter_digest[:DIGEST_LENGTH],
        ", ".join(each.dropped) or "-",
        "-" if each.reward is None else f"{each.reward:.3f}",
    )
