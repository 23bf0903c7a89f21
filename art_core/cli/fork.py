"""``art checkpoints fork``: a new run out of another one's step, wherever that stands and whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json
from rich.console import Console

from art_core.cli.progress import ByteBar
from art_core.cli.removal import RootOption
from art_core.cli.run import find_run
from art_core.cli.store import JsonOption, key_of, store_of, wait
from art_core.cli.table import say
from art_core.config import Environment, LoRAConfig
from art_core.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from art_core.checkpoint import StoredCheckpoint
    from art_core.fork import ForkSource, ForkTarget
    from art_core.run_key import RunKey


def fork(
    source: Annotated[
        str,
        typer.Option("--from", help="What is forked: <project>/<run> or a run's directory, and @<step> if not newest."),
    ],
    run: Annotated[str, typer.Option("--run", help="The new run, as <project>/<run>; it must have no step yet.")],
    store: Annotated[str | None, typer.Option("--store", help="Fetch it from this store, by name or URL.")] = None,
    path: RootOption = Path(".art"),
    base_model: Annotated[
        str | None, typer.Option(help="The base model as the new run's program names it; default: as the old one's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Start a new run from another run's step: same files, same number, optimizer included, every byte verified.

    A run directory of openpipe-art's own backend is taken too; it is left as it is, and what can't be verified of it is
    said.
    """
    root, old, step = _parse(source, path, stored_here=store is None)
    made = wait(_fork(root, old, step, store, _Wanted(key_of(run), path.absolute(), base_model)))
    if json:
        typer.echo(to_json({"directory": made.directory, "manifest": made.manifest}, indent=1))
    else:
        say(Console(), f"{run} starts at step {made.step}, from {made.manifest.origin}: {made.directory}")


@dataclass(frozen=True)
class _Wanted:
    """The run that is to be started."""

    key: RunKey
    root: Path
    base_model: str | None

    async def fork(self, source: ForkSource, base_model: str, lora: LoRAConfig, step: int | None) -> StoredCheckpoint:
        from art_core.fork import find_checkpoint, fork_checkpoint
        from art_core.local_store import LocalStore

        found = await find_checkpoint(LocalStore(), source)
        if step not in (None, found.step):
            raise CheckpointNotFoundError(
                f"run {source.project}/{source.run} has no step {step}; the newest before it is {found.step}", step=step
            )
        return await fork_checkpoint(LocalStore(), source, await self.target(base_model, lora))

    async def target(self, base_model: str, lora: LoRAConfig) -> ForkTarget:
        from art_core.fork import ForkTarget
        from art_core.model_source import resolve_base_model

        base = self.base_model or base_model
        resolved = await resolve_base_model(base, Environment.read().cache)
        return ForkTarget(self.root, self.key.project, self.key.run, base, resolved, lora)


def _parse(source: str, path: Path, *, stored_here: bool) -> tuple[Path, RunKey, int | None]:
    """Root, run and step that ``--from`` names."""
    name, at, step = source.rpartition("@")
    if not at:
        name, step = source, ""
    if at and not step.isdecimal():
        raise ConfigError(f"--from is {source!r}; the step after '@' is a number, e.g. project/run@7")
    directory = Path(name).absolute()
    if directory.is_dir() and directory.parent.name == "models":
        return directory.parents[2], key_of(f"{directory.parents[1].name}/{directory.name}"), _number(step)
    if name.startswith(("/", ".", "~")):
        raise ConfigError(
            f"--from is {source!r}, but {directory} is no run's directory; give <root>/<project>/models/<run>, or "
            f"<project>/<run> of a run below --path"
        )
    return find_run(path, name).parents[2] if stored_here else path.absolute(), key_of(name), _number(step)


def _number(step: str) -> int | None:
    return int(step) if step else None


async def _fork(root: Path, old: RunKey, step: int | None, store: str | None, wanted: _Wanted) -> StoredCheckpoint:
    from art_core.foreign_run import foreign_made_for, foreign_steps
    from art_core.fork import ForkSource, find_checkpoint, made_for
    from art_core.local_store import LocalStore
    from art_core.run import RunDirectory, run_path
    from art_core.transfer import adopted_source, fetched_source, find

    source, path = ForkSource(root, old.project, old.run, step), run_path(root, old.project, old.run)
    if store is not None:
        opened = store_of(store)
        entry = await find(opened, old, step)  # before anything is fetched, which may be an earlier step
        with ByteBar(f"fetching {old}") as bar:
            async with fetched_source(opened, source, None, bar.comes) as fetched:
                bar.add(entry.size_bytes)
                made = RunDirectory(run_path(fetched.root, old.project, old.run)).record()
                return await wanted.fork(fetched, made.base_model, made.lora, step)
    if steps := foreign_steps(path):
        if step not in (None, *steps):
            there = ", ".join(map(str, steps))
            raise CheckpointNotFoundError(f"{path} has no step {step}; its steps: {there}", step=step)
        base_model, lora = foreign_made_for(path, steps[-1] if step is None else step)
        async with adopted_source(source, await wanted.target(base_model, lora)) as adopted:
            return await wanted.fork(adopted, base_model, lora, step)
    base_model, lora = made_for(source, await find_checkpoint(LocalStore(), source), None)
    return await wanted.fork(source, base_model, lora, step)
