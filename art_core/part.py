"""What a plugin registers: a part's name, options, capabilities and factory; and what any part must keep."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from art_core.capability import Capabilities
from art_core.config import PartOptions
from art_core.environment import EnvironmentSpec
from art_core.errors import PluginContractError
from art_core.protocols import CONTRACT_VERSION
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.store import CheckpointStore
from art_core.protocols.trainer import Trainer


def anywhere() -> str | None:
    """The `Part.usable` of a part that works wherever it is installed."""
    return None


def missing_modules(*modules: str, fix: str) -> str | None:
    """For a `Part.usable`: which of a part's libraries are not installed here. Imports none of them.

    Args:
        modules: Top-level import names.
        fix: What to do about it, e.g. ``"pip install art-mine"``.

    Returns:
        None where all of them are, else which are not, with the fix.
    """
    missing = [module for module in modules if find_spec(module) is None]
    return f"not installed: {', '.join(missing)}; try: {fix}" if missing else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """What every kind of part declares."""

    name: str
    """Equal to the entry point's name."""
    options: type[PartOptions]
    """Its options, all with defaults; ``options.part == name``."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    priority: int = 0
    """For automatic choice: the highest that is usable wins."""
    usable: Callable[[], str | None] = anywhere
    """Says in one sentence why the part can't work on this machine, and what would mend that; None where it can.

    Called whenever plugins are listed or the part is chosen: milliseconds, no heavy import, no process left behind.
    """
    environment: EnvironmentSpec | None = None
    """What its library needs where it may live in an interpreter of its own (``art env create``); None: it runs in this
    one. Core asks it after `usable`, which says nothing of the library then; a trainer's process is launched in it, an
    engine asks `art_core.environment.interpreter` itself."""
    contract_version: int = CONTRACT_VERSION


@dataclass(frozen=True, kw_only=True)
class EnginePart(Part):
    """An inference engine. The factory must be light: no heavy import, no process."""

    create: Callable[[Any], InferenceEngine]
    """Options to engine."""
    capabilities_with: Callable[[Any], Capabilities] | None = None
    """Options to what the engine declares, where that depends on them (a device, a server that somebody else runs);
    None: `capabilities`, whatever they are. `capabilities` is then what it declares with its defaults here."""

    def declares(self, options: PartOptions) -> Capabilities:
        """What the engine declares when it is made with these options."""
        return self.capabilities if self.capabilities_with is None else self.capabilities_with(options)


@dataclass(frozen=True, kw_only=True)
class TrainerPart(Part):
    """A trainer. Its factory runs in the worker process, where heavy imports belong."""

    create: Callable[[Any], Trainer]
    """Options to trainer."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that its process is launched with: some libraries read theirs before any code of the plugin runs."""


@dataclass(frozen=True, kw_only=True)
class StorePart(Part):
    """A checkpoint store."""

    create: Callable[[Any], CheckpointStore | None]
    """Options to store. None: the options ask for no copy beyond the run's own directory."""


@dataclass(frozen=True, kw_only=True)
class PublisherPart(Part):
    """A publisher."""

    create: Callable[[Any, InferenceEngine, Capabilities], Publisher]
    """Options, the engine and what it declares, to publisher."""
    serves: bool = True
    """Whether the run's engine serves what it publishes, so that the route may follow. False: it brings steps
    elsewhere, beside a publisher that serves."""


def require_contract(made: object, contract: type, what: str) -> None:
    """Refuse an object that lacks a method of its contract, before anything is started.

    Looks at names, at whether they are coroutines and at whether they take the contract's arguments. What they do
    is for the conformance kit to say.

    Args:
        made: An engine, trainer, store or publisher.
        contract: Its Protocol.
        what: How to call it in the message, e.g. ``"engine Mine"``.

    Raises:
        PluginContractError: Names every method that is missing or wrong.
    """
    methods = {name: method for name, method in vars(contract).items() if inspect.isfunction(method)}
    public = {name: method for name, method in methods.items() if not name.startswith("_")}
    wrong = [problem for name, method in public.items() if (problem := _problem(getattr(made, name, None), method))]
    if wrong:
        raise PluginContractError(
            f"{what} does not keep the contract {contract.__name__}: {'; '.join(wrong)}; see {contract.__module__}"
        )


def _problem(seen: object, expected: Callable[..., object]) -> str | None:
    _, *arguments = inspect.signature(expected).parameters
    call = f"{expected.__name__}({', '.join(arguments)})"
    if not callable(seen):
        return f"{call} is missing"
    if not inspect.iscoroutinefunction(seen):
        return f"{call} is not `async def`"
    signature = inspect.signature(seen)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"{call} is {expected.__name__}{signature}: {error}"
    return None
