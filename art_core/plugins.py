"""Find plugins by entry point, load them by name, check what they register.

Only the plugin that is named gets imported, so a broken neighbour can't stop a run. Listing imports every plugin,
each on its own, and reports the broken ones beside the good; each part says itself whether it can work here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Literal

import pluggy

from art_core import hookspecs
from art_core.config import Environment, PartOptions
from art_core.entry_point import distribution, find_entry, installed, not_installed, version
from art_core.environment import EnvironmentSpec, missing
from art_core.errors import (
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
    PluginUnusableError,
)
from art_core.hookspecs import PROJECT
from art_core.part import EnginePart, Part, PublisherPart, StorePart, TrainerPart
from art_core.protocols import CONTRACT_VERSION

OBSERVERS = "art_on_"
"""How the name of every hook that observes begins."""
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


@dataclass(frozen=True)
class Candidate:
    """A part that could be chosen automatically."""

    part: Part
    unusable: str | None
    """Why it can't work here, None where it can."""


class Plugins:
    """The plugins of this interpreter; holds what has been loaded so far, and why parts can't be used."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.chosen = ""
        """What was last composed with these plugins: each kind's part, and the reason."""
        self._parts: dict[tuple[Kind, str], Part] = {}
        self._candidates: dict[Kind, list[Candidate]] = {}
        self._reports: list[PluginReport] | None = None

    def part(self, kind: Kind, name: str) -> Part:
        """The part of that kind and name, loading its plugin on first use.

        Raises:
            PluginNotFoundError: Not installed, or installed and of another kind; the nearest name is suggested.
            PluginConflictError: Two distributions offer the name.
            PluginLoadError: Its module can't be imported.
            PluginContractError: What it registers breaks the contract.
        """
        if not any(entry.name == name for entry in installed()):
            raise not_installed(kind, name, {part.name for part in self._installed_parts(kind)})
        self._load(kind, name)
        found = self._parts.get((kind, name))
        if found is None:
            offers = ", ".join(k for k, n in self._parts if n == name) or "nothing"
            raise PluginNotFoundError(f"{name!r} is installed but offers no {kind}; it offers: {offers}")
        return found

    def best(self, kind: Kind) -> Part:
        """The usable part of that kind with the highest priority (ties: first by name).

        Raises:
            PluginNotFoundError: None is installed; broken plugins are named.
            PluginUnusableError: None can work here; each is named with its reason.
        """
        candidates = self.candidates(kind)
        for candidate in candidates:
            if candidate.unusable is None:
                return candidate.part
        broken = "; ".join(f"{r.name}: {r.error}" for r in self.report() if r.error) or "none"
        if not candidates:
            raise PluginNotFoundError(
                f"no {kind} is installed (broken plugins: {broken}); install a plugin that offers one: "
                f"pip install art-<name>"
            )
        reasons = "; ".join(f"{each.part.name}: {each.unusable}" for each in candidates)
        raise PluginUnusableError(
            f"no installed {kind} can work here ({reasons}) (broken plugins: {broken}); mend one of these, or install "
            f"another: pip install art-<name>"
        )

    def load_observer(self, name: str) -> None:
        """Load the plugin of that name so that its observer hooks are called.

        Raises:
            PluginNotFoundError: Not installed, or it has no observer hook; the nearest name is suggested.
            PluginConflictError: Two distributions offer the name.
            PluginLoadError: Its module can't be imported.
            PluginContractError: What it registers breaks the contract.
        """
        self._load("observer", name)
        hooks = self.manager.get_hookcallers(self.manager.get_plugin(name)) or []
        if not any(hook.name.startswith(OBSERVERS) for hook in hooks):
            raise PluginNotFoundError(f"{name!r} is installed but observes nothing; it has no {OBSERVERS}... hook")

    def candidates(self, kind: Kind) -> list[Candidate]:
        """Every part of that kind, the highest priority first (ties: by name), with why it can't work here."""
        if kind not in self._candidates:
            ranked = sorted(self._installed_parts(kind), key=lambda part: (-part.priority, part.name))
            self._candidates[kind] = [Candidate(part, self.unusable(part)) for part in ranked]
        return self._candidates[kind]

    def unusable(self, part: Part, options: PartOptions | None = None) -> str | None:
        """Why a part can't work here, in its own words; None where it can.

        A check that fails, or answers with something else than its contract says, is a reason too.

        Args:
            part: The part.
            options: What it would be made with; some need no managed environment (`PartOptions.hosted`).
        """
        hosted = options is None or options.hosted
        try:
            reason: object = part.usable()
            if reason is None and part.environment is not None and hosted:
                reason = missing(part.environment, Environment.read().cache)
        except Exception as error:  # noqa: BLE001 - foreign code; its failure is the answer
            _log.debug("the check of part %r failed", part.name, exc_info=error)
            return f"its check failed: {type(error).__name__}: {error}; tell the authors of the plugin"
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        return f"its check answered {reason!r}, not None or a sentence; tell the authors of the plugin"

    def report(self) -> list[PluginReport]:
        """Every installed plugin by name, imported one by one; a broken one is reported, never raised."""
        if self._reports is None:
            entries = sorted(installed(), key=lambda entry: (entry.name, distribution(entry)))
            self._reports = [self._report(entry) for entry in entries]
        return self._reports

    def environments(self) -> dict[str, EnvironmentSpec]:
        """What the installed parts need in interpreters of their own, by name.

        Raises:
            PluginContractError: Two parts of a plugin say different things of one environment.
        """
        found: dict[str, EnvironmentSpec] = {}
        for part in (part for report in self.report() for part in report.parts):
            if part.environment is not None and found.setdefault(part.name, part.environment) != part.environment:
                raise PluginContractError(f"the parts of plugin {part.name!r} declare different environments")
        return found

    def _installed_parts(self, kind: Kind) -> list[Part]:
        return [part for report in self.report() for part in report.parts if isinstance(part, KINDS[kind])]

    def _report(self, entry: EntryPoint) -> PluginReport:
        error = None
        try:
            self._load("engine", entry.name)
        except PluginError as problem:
            error = f"{type(problem).__name__}: {problem}"
            _log.warning("plugin %r can't be used: %s", entry.name, problem)
        parts = [part for (_, name), part in self._parts.items() if name == entry.name]
        return PluginReport(entry.name, distribution(entry), version(entry), parts, error)

    def _load(self, kind: Kind | Literal["observer"], name: str) -> None:
        if self.manager.has_plugin(name):
            return
        entry = find_entry(kind, name)
        try:
            module = entry.load()
        except (Exception, SystemExit) as error:  # a script that is no module ends itself when it is imported
            raise PluginLoadError(
                f"plugin {name!r} ({distribution(entry)}) can't be imported: {type(error).__name__}: {error}"
            ) from error
        parts: dict[tuple[Kind, str], Part] = {}
        if (other := self.manager.get_name(module)) is not None:
            raise PluginContractError(f"plugin {name!r} ({distribution(entry)}) is the same module as {other!r}")
        try:
            self.manager.register(module, name)
            self.manager.check_pending()
            for each in KINDS:
                _collect(self.manager, module, each, name, parts)
        except pluggy.PluginValidationError as error:
            self.manager.unregister(name=name)
            raise PluginContractError(f"plugin {name!r} ({distribution(entry)}): {error}") from error
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
        check_part(part, kind, name)
        if (kind, name) in into:
            raise PluginConflictError(f"plugin {name!r} registers two {kind}s of that name")
        into[kind, name] = part

    # this module's own, one by one: a hook call would ask every other plugin to register again
    hook: pluggy.HookCaller = manager.hook.__dict__[f"art_register_{kind}s"]
    try:
        for implementation in hook.get_hookimpls():
            if implementation.plugin is module:
                implementation.function(*(register for _ in implementation.argnames))
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginLoadError(f"plugin {name!r} failed while registering its {kind}: {error}") from error


def check_part(part: object, kind: Kind, name: str) -> None:
    """Refuse a part that does not keep the contract.

    Args:
        part: What was registered, or given by the caller.
        kind: What it must be.
        name: What it must be called.

    Raises:
        PluginContractError: It is of another kind, name or contract version.
    """
    expected = KINDS[kind]
    if not isinstance(part, expected):
        raise PluginContractError(f"{name!r} registers {type(part).__name__} as {kind}; expected {expected.__name__}")
    for what, seen, allowed in (
        ("name", part.name, name),
        ("options.part", part.options.part, name),
        ("environment.name", part.environment.name if part.environment else name, name),
        ("contract_version", part.contract_version, CONTRACT_VERSION),
    ):
        if seen != allowed:
            raise PluginContractError(f"{kind} {name!r} has {what} {seen!r}; this ART needs {allowed!r}")
