"""What the checkpoint commands need of a store: the one that a URL names, and its runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from art_core.errors import ConfigError

if TYPE_CHECKING:
    from art_core.protocols.store import CheckpointStore, StoreEntry
    from art_core.run_key import RunKey

R = TypeVar("R")

StoreOption = Annotated[
    str | None, typer.Option("--store", help="A store's name or URL, e.g. file:///mnt/share, instead of this machine.")
]
NeededStoreOption = Annotated[str, typer.Option("--store", help="A store's name or URL, e.g. file:///mnt/share.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Only this run, as <project>/<run>.")]
NeededRunOption = Annotated[str, typer.Option("--run", help="The run, as <project>/<run>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def store_of(name: str) -> CheckpointStore:
    """The store of that name or URL.

    Raises:
        ConfigError: It is one that copies nowhere, or to where nothing stays.
        PluginError: There is none of that name.
    """
    from art_core.compose import compose_store
    from art_core.plugins import Plugins

    if name.startswith("memory:"):
        raise ConfigError(f"store {name!r} goes with this command's process: give a URL, e.g. file:///mnt/share")
    store = compose_store(name, Plugins())
    if store is None:
        raise ConfigError(f"store {name!r} holds no copies: give a URL, e.g. file:///mnt/share")
    return store


def key_of(run: str) -> RunKey:
    """The run that ``<project>/<run>`` names.

    Raises:
        ConfigError: It is no such text.
    """
    from art_core.run_key import RunKey

    project, slash, name = run.partition("/")
    if not slash:
        raise ConfigError(f"run is {run!r}; give <project>/<run>")
    return RunKey(project, name)


async def entries(store: CheckpointStore, run: str | None) -> AsyncIterator[tuple[RunKey, Sequence[StoreEntry]]]:
    """The runs of a store with their steps; of one run only if it is named.

    Raises:
        CheckpointNotFoundError: The store holds nothing of the one that is named.
    """
    from art_core.transfer import held

    if run is not None:
        yield key_of(run), await held(store, key_of(run))
        return
    for key in await store.runs():
        yield key, await store.list(key)


def wait(work: Coroutine[Any, Any, R]) -> R:
    """Do asynchronous work to its end."""
    return asyncio.run(work)
