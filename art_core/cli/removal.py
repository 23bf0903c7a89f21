"""``art checkpoints delete`` and ``gc``: what is no longer wanted, on this machine or in a store.

The newest step of a run is never deleted. On this machine a run that somebody trains is left alone: its own process
knows what it serves, and its retention policy is given to the backend. What would go can be asked of it, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console

from art_core.cli.run import find_own_run
from art_core.cli.store import JsonOption, NeededRunOption, StoreOption, key_of, store_of, wait
from art_core.cli.table import say
from art_core.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from art_core.protocols.store import StoreEntry
    from art_core.retention import Plan, Retention
    from art_core.run import RunDirectory
    from art_core.run_key import RunKey

RootOption = Annotated[Path, typer.Option("--path", help="Root of runs on this machine.")]
DAY_S = 86400.0


@dataclass(frozen=True)
class Removed:
    """What has gone, or would."""

    deleted: Collection[int]
    optimizer_dropped: Collection[int]
    leftovers: int
    """Files, objects or uploads that cut-off calls had left."""
    dry_run: bool


def delete(
    step: Annotated[list[int], typer.Option(help="The step; may be given again.")],
    run: NeededRunOption,
    store: StoreOption = None,
    path: RootOption = Path(".art"),
    json: JsonOption = False,
) -> None:
    """Delete steps of a run, never the newest one."""
    gone = Removed(wait(_delete(store, key_of(run), step, path)), [], 0, False)
    if json:
        typer.echo(to_json(gone, indent=1))
    else:
        say(Console(), f"deleted: {_numbers(gone.deleted)}")


def gc(
    run: NeededRunOption,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="latest=K, best=METRIC, every=N or optimizer=K; may be given again. No rule: all steps."),
    ] = None,
    store: StoreOption = None,
    path: RootOption = Path(".art"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: JsonOption = False,
) -> None:
    """Let go what the rules don't keep, and what calls that were cut off more than a day ago have left.

    A step stays if any rule says so. The optimizer state of the newest two steps stays unless told otherwise.
    """
    _say(wait(_collect(store, key_of(run), _retention(keep or []), path, dry_run)), json)


def _retention(rules: Sequence[str]) -> Retention:
    from art_core.retention import Retention

    values: dict[str, Any] = {}
    for rule in rules:
        name, _, value = rule.partition("=")
        if name in values:
            raise ConfigError(f"rule {name!r} is given twice, as {values[name]} and {value}; give it once")
        number = name in ("latest", "every", "optimizer")
        if not value or not (number or name == "best") or (number and not value.isdecimal()):
            raise ConfigError(f"rule is {rule!r}; allowed: latest=K, best=METRIC, every=N, optimizer=K")
        values[name] = int(value) if number else value
    return Retention(**values)


async def _delete(store: str | None, run: RunKey, steps: Collection[int], root: Path) -> Collection[int]:
    from art_core.local_store import LocalStore
    from art_core.transfer import held

    if store is not None:
        opened = store_of(store)
        stored = [each.step for each in await held(opened, run)]
        return _all_of(run, steps, await opened.delete(run, steps, stored[-1:]), stored)
    with _held(run, root) as directory:
        stored = [each.step for each in await LocalStore().list(directory.path)]
        return _all_of(run, steps, await LocalStore().delete(directory.path, steps, stored[-1:]), stored)


def _all_of(run: RunKey, wanted: Collection[int], gone: Collection[int], stored: Collection[int]) -> Collection[int]:
    """The steps that are gone, if those are all that were named; a damaged one is, though no listing showed it."""
    if missing := sorted(set(wanted) - set(gone)):
        absent, there = ", ".join(map(str, missing)), ", ".join(map(str, sorted(set(stored) - set(gone)))) or "none"
        deleted = ", ".join(map(str, sorted(gone))) or "nothing"
        raise CheckpointNotFoundError(f"run {run} has no step {absent}; its steps: {there}; deleted: {deleted}")
    return gone


async def _collect(store: str | None, run: RunKey, retention: Retention, root: Path, dry_run: bool) -> Removed:
    from art_core.file_store import FileStore
    from art_core.local_store import LocalStore

    if store is None:
        root = find_own_run(root, str(run)).parents[2]
    if store is None and not dry_run:
        with _held(run, root) as directory:  # taking the lock has removed what was left
            steps = [each.step for each in await FileStore(root).list(run)]
            plan = _plan(retention, run, root, steps)
            deleted = await LocalStore().delete(directory.path, plan.delete, steps[-1:])
            return Removed(deleted, await LocalStore().drop_optimizer(directory.path, plan.drop_optimizer), 0, False)
    opened = FileStore(root) if store is None else store_of(store)
    entries = await opened.list(run)  # none is no error: there may be leftovers
    plan = _plan(retention, run, root, [each.step for each in entries])
    if dry_run:
        return Removed(sorted(plan.delete), _would_drop(plan, entries), 0, True)
    deleted = await opened.delete(run, plan.delete, [each.step for each in entries][-1:])
    dropped = await opened.drop_optimizer(run, plan.drop_optimizer)
    return Removed(deleted, dropped, await opened.sweep(run, DAY_S), False)


def _would_drop(plan: Plan, entries: Sequence[StoreEntry]) -> list[int]:
    """Of the steps whose optimizer state is to go, those that have one."""
    from art_core.checkpoint import OPTIMIZER

    having = {each.step for each in entries if OPTIMIZER in each.manifest.files.keys() - each.dropped}
    return sorted(plan.drop_optimizer & having)


def _plan(retention: Retention, run: RunKey, root: Path, steps: Collection[int]) -> Plan:
    from art_core.retention import scores
    from art_core.run import RunDirectory, run_path

    history = RunDirectory(run_path(root, run.project, run.run)).history() if retention.best else []
    found = scores(history, retention.best or "")
    if retention.best and not found:
        raise ConfigError(
            f"no line of history.jsonl of run {run} below {root} has {retention.best!r}; name a metric that was "
            f"logged, and give --path where the history is on this machine"
        )
    return retention.plan(steps, found)


@contextmanager
def _held(run: RunKey, root: Path) -> Iterator[RunDirectory]:
    from art_core.run import RunDirectory

    directory = RunDirectory.create_or_open(find_own_run(root, str(run)).parents[2], run.project, run.run)
    try:
        yield directory
    finally:
        directory.close()


def _say(removed: Removed, json: bool) -> None:
    if json:
        typer.echo(to_json(removed, indent=1))
        return
    console, would = Console(), "would be " if removed.dry_run else ""
    for what, steps in (("deleted", removed.deleted), ("without optimizer state", removed.optimizer_dropped)):
        say(console, f"{would}{what}: {_numbers(steps)}")
    if removed.leftovers:
        say(console, f"left over by cut-off calls, removed: {removed.leftovers}")


def _numbers(steps: Collection[int]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"
