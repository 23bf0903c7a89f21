"""``art env``: interpreters of their own for parts whose libraries need one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from art_core.cli.table import gigabytes, packages_text, say, show

if TYPE_CHECKING:
    from art_core.environment import EnvironmentSpec, EnvironmentState

app = typer.Typer(
    help="Interpreters of their own for engines and trainers whose libraries need one.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The part's name, as in `art plugins list`.")]
DEVICE = "Which of the part's pinned sets, e.g. cpu or gpu; default: gpu where this machine has one."
Device = Annotated[str | None, typer.Option(help=DEVICE)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
COLUMNS = ("environment", "device", "python", "library", "size", "built", "in use", "directory")


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(help="The part's name, as in `art plugins list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Build for every part that has a set for the device.")] = False,
    device: Device = None,
    python: Annotated[str | None, typer.Option(help="Interpreter to build it with; default: this one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be installed, and where.")] = False,
) -> None:
    """Build a part's environment with venv and pip, unless it stands already. Prints its interpreter at the end."""
    from art_core.environment import create as create_environment
    from art_core.errors import ConfigError

    if (name is None) != every:
        raise ConfigError("name one part, or give --all")
    console = Console()
    specs = [_spec(name)] if name else [each for each in _specs().values() if device in (None, *each.requirements)]
    for spec in specs:
        made = create_environment(
            spec, _cache(), device, python=python, dry_run=dry_run, report=lambda line: say(console, line)
        )
        if not dry_run:
            say(console, str(made))


@app.command(name="list")
def list_(json: Json = False) -> None:
    """List every environment, also those that are not whole or that no part would use."""
    from pydantic_core import to_json

    from art_core.environment import list_environments

    states = list_environments(_cache(), _specs())
    if json:
        typer.echo(to_json(states, indent=1))
    else:
        show(Console(), "environments", COLUMNS, environment_rows(states))


@app.command()
def remove(
    name: Name,
    unused: Annotated[bool, typer.Option("--unused", help="Keep those that a part would run in.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete also what processes run in.")] = False,
) -> None:
    """Delete a part's environments, unless a process runs in one."""
    from art_core.environment import remove as remove_environments

    console = Console()
    gone = remove_environments(name, _cache(), _specs(), unused_only=unused, force=force)
    for each in gone:
        say(console, f"removed {each}")
    if not gone:
        say(console, f"every environment of {name!r} is in use; nothing removed")


@app.command()
def check(name: Name, device: Device = None, json: Json = False) -> None:
    """Import a part's library where it would run, and compare what is installed with the pinned set.

    The exit code is 1 where something is wrong.
    """
    from pydantic_core import to_json

    from art_core.environment import check as check_environment

    python, problems = check_environment(_spec(name), _cache(), device)
    if json:
        typer.echo(to_json({"interpreter": python, "problems": problems}, indent=1))
    else:
        console = Console()
        for problem in problems:
            say(console, f"problem: {problem}")
        say(console, f"{python}: {'see above' if problems else 'works'}")
    raise typer.Exit(1 if problems else 0)


def environment_rows(states: Sequence[EnvironmentState]) -> list[tuple[str, ...]]:
    """A row for each environment; the columns are `COLUMNS`."""
    return [
        (
            each.name,
            each.device,
            each.python or "-",
            packages_text(each.library),
            gigabytes(each.size_bytes),
            each.created or "-",
            f"no: {each.unused}" if each.unused else "yes",
            str(each.directory),
        )
        for each in states
    ]


def _cache() -> Path:
    from art_core.config import Environment

    return Environment.read().cache


def _specs() -> dict[str, EnvironmentSpec]:
    from art_core.plugins import Plugins

    logging.getLogger("art.plugins").setLevel(logging.ERROR)  # a broken plugin has no environment, and no say here
    return Plugins().environments()


def _spec(name: str) -> EnvironmentSpec:
    from art_core.errors import PluginNotFoundError, nearest

    specs = _specs()
    if name not in specs:
        raise PluginNotFoundError(
            f"no installed part {name!r} declares an environment; {nearest(name, specs)}; a broken plugin says why in "
            f"`art plugins list`"
        )
    return specs[name]
