"""``art doctor``: what `art_core.doctor` found, for people or as JSON."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from art_core.cli.table import gigabytes, packages_text, say, show

if TYPE_CHECKING:
    from art_core.doctor import Diagnosis, PluginState


def doctor(
    engine: Annotated[str | None, typer.Option(help="Inference engine that a run would name.")] = None,
    trainer: Annotated[str | None, typer.Option(help="Trainer that a run would name.")] = None,
    store: Annotated[str | None, typer.Option(help="Checkpoint store that a run would name.")] = None,
    publisher: Annotated[str | None, typer.Option(help="Publisher that a run would name.")] = None,
    path: Annotated[Path, typer.Option(help="Root that a run would be written to.")] = Path(".art"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is installed here, what a run would use and why, and what stands in its way.

    Starts nothing. The exit code is 1 where a run could not start.
    """
    from pydantic_core import to_json

    from art_core.doctor import examine

    logging.getLogger("art.plugins").setLevel(logging.ERROR)  # what it would warn of stands in the tables
    diagnosis = examine({"engine": engine, "trainer": trainer, "store": store, "publisher": publisher}, path)
    if json:
        typer.echo(to_json(diagnosis, indent=1))
    else:
        _print(diagnosis, Console())
    raise typer.Exit(0 if diagnosis.can_start else 1)


def plugin_rows(plugins: Sequence[PluginState]) -> list[tuple[str, ...]]:
    """A row for each part, and one for each broken plugin; the columns are `PLUGIN_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for plugin in plugins:
        start = (plugin.name, f"{plugin.distribution} {plugin.version}")
        for part in plugin.parts:
            degrees = sorted(part.capabilities.items())
            can = ", ".join(name if degree == "full" else f"{name} ({degree})" for name, degree in degrees)
            figures = (part.kind, str(part.contract_version), str(part.priority), can or "-")
            rows.append((*start, *figures, part.unusable or "yes"))
        if plugin.error or not plugin.parts:
            rows.append((*start, "-", "-", "-", "-", plugin.error or "registers no part"))
    return rows


PLUGIN_COLUMNS = ("plugin", "distribution", "kind", "contract", "priority", "capabilities", "usable here")


def _print(found: Diagnosis, console: Console) -> None:
    machine = found.machine
    gpus = [f"{gpu.name}, {gigabytes(gpu.memory_bytes)}, driver {gpu.driver or '?'}" for gpu in machine.gpus]
    rows = [
        ("python", f"{found.python}, {found.interpreter}"),
        ("system", machine.system),
        ("processor", f"{machine.cores} cores, {gigabytes(machine.memory_bytes)} memory"),
        *(("GPU", gpu) for gpu in [*gpus, *["Apple (MPS)"] * machine.mps] or ["none found"]),
    ]
    if found.visible_gpus is not None:
        rows.append(("CUDA_VISIBLE_DEVICES", found.visible_gpus or "empty: programs see no GPU"))
    rows += [(place.what, f"{place.path}, {gigabytes(place.free_bytes)} free") for place in found.places]
    show(console, "machine", ("what", "found"), rows)
    packages = [(each.name, each.version or "missing", each.wanted or "-", each.by or "-") for each in found.packages]
    show(console, "packages", ("package", "version", "wanted", "by"), packages)
    show(console, "plugins", PLUGIN_COLUMNS, plugin_rows(found.plugins))
    libraries = [
        (each.name, str(each.interpreter or "none"), packages_text(each.versions), each.missing or "-")
        for each in found.libraries
    ]
    if libraries:
        columns = ("part", "interpreter", "version", "missing")
        show(console, "libraries that may live in interpreters of their own", columns, libraries)
    choices = [(each.kind, each.name or "none", each.reason) for each in found.choices]
    show(console, "a run here would use", ("kind", "part", "why"), choices)
    for problem in found.problems:
        say(console, f"{'problem' if problem.stops else 'warning'}: {problem.what}")
    say(console, "a run can start here" if found.can_start else "no run can start here: mend the problems above")
