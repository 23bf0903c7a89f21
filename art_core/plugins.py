"""Find plugins by entry point, load them by name, check what they register.

Only the plugin that is named gets imported, so a broken neighbour can't stop a run. Listing imports every plugin,
each on its own, and reports the broken ones beside the good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

import pluggy

from art_core import hookspecs
from art_core.errors import (
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
    nearest,
)
from art_core.hookspecs import PROJECT
from art_core.part import EnginePart, Part, PublisherPart, StorePart, TrainerPart
from art_core.protocols import CONTRACT_VERSION

GROUP = "art_core"
Kind = Literal["engine", "trainer", "store", "publisher"]
KINDS: Mapping[Kind, type[Part]] = {
    "engine": EnginePart,
    "trainer": TrainerPart,
    "store": StorePart,
    "publisher": PublisherPart,
}

_log = logging.getLogger("art.plugins")


@dataclass(frozen=True)
class PluginReport:
    """What `Plugins.report` says of one installed plugin."""

    name: str
    distribution: str
    version: str
    parts: Sequence[Part]
    error: str | None
    """Why it can't be used, None where it can."""


class Plugins:
    """The plugins of this interpreter; holds what has been loaded so far."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._parts: dict[tuple[Kind, str], Part] = {}

    def part(self, kind: Kind, name: str) -> Part:
        """The part of that kind and name, loading its plugin on first use.

        Raises:
            PluginNotFoundError: Not installed, or installed and of another kind; the nearest name is suggested.
            PluginConflictError: Two distributions offer the name.
            PluginLoadError: Its module can't be imported.
            PluginContractError: What it registers breaks the contract.
        """
        self._load(kind, name)
        found = self._parts.get((kind, name))
        if found is None:
            offers = ", ".join(k for k, n in self._parts if n == name) or "nothing"
            raise PluginNotFoundError(f"{name!r} is installed but offers no {kind}; it offers: {offers}")
        return found

    def best(self, kind: Kind) -> Part:
        """The usable part of that kind with the highest priority (ties: first by name).

        Raises:
            PluginNotFoundError: None is installed; broken ones are named.
        """
        reports = self.report()
        parts = [part for report in reports for part in report.parts if isinstance(part, KINDS[kind])]
        if not parts:
            broken = "; ".join(f"{r.name}: {r.error}" for r in reports if r.error) or "none"
            raise PluginNotFoundError(
                f"no {kind} is installed (broken plugins: {broken}); install a plugin that offers one: "
                f"pip install art-<name>"
            )
        return max(sorted(parts, key=lambda part: part.name), key=lambda part: part.priority)

    def report(self) -> list[PluginReport]:
        """Every installed plugin by name, imported one by one; a broken one is reported, never raised."""
        reports = []
        for entry in sorted(_installed(), key=lambda entry: entry.name):
            error = None
            try:
                self._load("engine", entry.name)
            except PluginError as problem:
                error = f"{type(problem).__name__}: {problem}"
                _log.warning("plugin %r can't be used: %s", entry.name, problem)
            parts = [part for (_, name), part in self._parts.items() if name == entry.name]
            name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
            reports.append(PluginReport(entry.name, name, version, parts, error))
        return reports

    def _load(self, kind: Kind, name: str) -> None:
        if self.manager.has_plugin(name):
            return
        entry = _entry(kind, name)
        try:
            module = entry.load()
        except Exception as error:
            raise PluginLoadError(
                f"plugin {name!r} ({_distribution(entry)}) can't be imported: {type(error).__name__}: {error}"
            ) from error
        parts: dict[tuple[Kind, str], Part] = {}
        try:
            self.manager.register(module, name)
            self.manager.check_pending()
            for each in KINDS:
                _collect(self.manager, module, each, name, parts)
        except pluggy.PluginValidationError as error:
            self.manager.unregister(name=name)
            raise PluginContractError(f"plugin {name!r} ({_distribution(entry)}): {error}") from error
        except PluginError:
            self.manager.unregister(name=name)
            raise
        self._parts |= parts


def load_part(kind: Kind, name: str) -> Part:
    """`Plugins().part`: for a process that needs one part only."""
    return Plugins().part(kind, name)


def _collect(
    manager: pluggy.PluginManager, module: object, kind: Kind, name: str, into: dict[tuple[Kind, str], Part]
) -> None:
    def register(part: Part) -> None:
        _check(part, kind, name)
        if (kind, name) in into:
            raise PluginConflictError(f"plugin {name!r} registers two {kind}s of that name")
        into[kind, name] = part

    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    hook = manager.subset_hook_caller(f"art_register_{kind}s", remove_plugins=others)
    call: Callable[..., object] = hook
    try:
        call(register=register)
    except PluginError:
        raise
    except Exception as error:
        raise PluginLoadError(f"plugin {name!r} failed while registering its {kind}: {error}") from error


def _check(part: object, kind: Kind, name: str) -> None:
    expected = KINDS[kind]
    if not isinstance(part, expected):
        raise PluginContractError(
            f"plugin {name!r} registers {type(part).__name__} as {kind}; expected {expected.__name__}"
        )
    for what, seen, allowed in (
        ("name", part.name, name),
        ("options.part", part.options.part, name),
        ("contract_version", part.contract_version, CONTRACT_VERSION),
    ):
        if seen != allowed:
            raise PluginContractError(f"{kind} {name!r} has {what} {seen!r}; this ART needs {allowed!r}")


def _installed() -> list[EntryPoint]:
    """Entry points of our group, those that one distribution shows twice (editable installs) counted once."""
    unique = {(entry.name, entry.value, _distribution(entry)): entry for entry in entry_points(group=GROUP)}
    return list(unique.values())


def _entry(kind: Kind, name: str) -> EntryPoint:
    installed = _installed()
    matches = [entry for entry in installed if entry.name == name]
    if not matches:
        raise PluginNotFoundError(
            f"{kind} {name!r} is not installed; {nearest(name, {entry.name for entry in installed})} "
            f"(a plugin's distribution is called art-<name>: pip install art-{name})"
        )
    if len(matches) > 1:
        owners = ", ".join(sorted(_distribution(entry) for entry in matches))
        raise PluginConflictError(f"plugin name {name!r} is offered by {owners}; uninstall all but one")
    return matches[0]


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
