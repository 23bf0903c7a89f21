"""``art checkpoints pull`` and ``push``: copies between this machine and a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json
from rich.console import Console

from art_core.cli.progress import ByteBar, bytes_in
from art_core.cli.run import find_own_run
from art_core.cli.store import JsonOption, NeededRunOption, NeededStoreOption, key_of, store_of, wait
from art_core.cli.table import say
from art_core.errors import CheckpointNotFoundError

if TYPE_CHECKING:
    from art_core.run_key import RunKey

RootOption = Annotated[Path, typer.Option("--path", help="Root of runs on this machine.")]


def pull(
    store: NeededStoreOption,
    run: NeededRunOption,
    step: Annotated[int | None, typer.Option(help="Which step; default: the newest.")] = None,
    path: RootOption = Path(".art"),
    to: Annotated[Path | None, typer.Option(help="An empty directory for the copy, instead of the run's own.")] = None,
    json: JsonOption = False,
) -> None:
    """Copy a step out of a store, every byte verified; a run that is started from there goes on from it."""
    with ByteBar(f"pulling {run}") as bar:
        directory = wait(_pull(store, key_of(run), step, to or path, to is None, bar))
    typer.echo(to_json({"directory": directory}, indent=1) if json else directory)


def push(
    store: NeededStoreOption,
    run: NeededRunOption,
    step: Annotated[list[int] | None, typer.Option(help="Only this step; may be given again. Default: all.")] = None,
    path: RootOption = Path(".art"),
    json: JsonOption = False,
) -> None:
    """Copy a run's steps into a store; what it holds already is left alone. The run may go on meanwhile."""
    copied = wait(_push(store, run, step, path))
    if json:
        typer.echo(to_json({"copied": copied}, indent=1))
    else:
        say(Console(), f"copied: {', '.join(map(str, copied)) or 'nothing, the store holds them already'}")


async def _pull(store: str, run: RunKey, step: int | None, to: Path, into_run: bool, bar: ByteBar) -> Path:
    from art_core.transfer import pull as pull_step
    from art_core.transfer import pull_copy

    opened = store_of(store)
    if into_run:
        return (await pull_step(opened, run, step, to, bar.comes)).directory
    return await pull_copy(opened, run, step, to, bar.comes)


async def _push(store: str, run: str, steps: list[int] | None, root: Path) -> list[int]:
    from art_core.local_store import LocalStore
    from art_core.transfer import push as push_steps

    opened, path = store_of(store), find_own_run(root, run)
    await opened.check()
    sizes = {each.step: bytes_in(each.directory) for each in await LocalStore().list(path)}
    if not sizes:
        raise CheckpointNotFoundError(
            f"{path} has no whole checkpoint to copy; see `art checkpoints list --path {path}`"
        )
    with ByteBar(f"pushing {run}") as bar:
        bar.expect(sum(sizes.get(step, 0) for step in (sizes if steps is None else steps)))
        return await push_steps(opened, key_of(run), path, steps, lambda step, _: bar.add(sizes[step]))
