"""``art plugins list``: every installed plugin, what its parts can do, and why a broken one can't be used."""

from __future__ import annotations

import logging
from typing import Annotated

import typer
from rich.console import Console

from art_core.cli.doctor import PLUGIN_COLUMNS, plugin_rows
from art_core.cli.table import show

app = typer.Typer(help="What is installed: engines, trainers, stores and publishers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `list` a command of its own, although it is the only one."""


@app.command(name="list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List every installed plugin, the broken ones with the reason. Imports no training library."""
    from pydantic_core import to_json

    from art_core.doctor import plugin_states
    from art_core.plugins import Plugins

    logging.getLogger("art.plugins").setLevel(logging.ERROR)  # what it would warn of stands in the list
    states = plugin_states(Plugins())
    if json:
        typer.echo(to_json(states, indent=1))
    else:
        show(Console(), "plugins", PLUGIN_COLUMNS, plugin_rows(states))
