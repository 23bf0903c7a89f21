"""Which part a run gets for each kind, and why: by option, by environment variable, by preset, by priority.

An object that the caller made is turned into a part too, so that nothing after this room asks where a part is from.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl

from pydantic import ConfigDict

from art_core.capability import Capabilities
from art_core.config import Environment, HostedOptions, PartOptions
from art_core.entry_point import installed
from art_core.errors import ConfigError, PluginContractError, PluginNotFoundError, PluginUnusableError
from art_core.part import (
    EnginePart,
    Part,
    PublisherPart,
    StorePart,
    TrainerPart,
    require_contract,
)
from art_core.plugins import Kind, Plugins, check_part
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.protocols.store import CheckpointStore
from art_core.protocols.trainer import Trainer

PublisherFactory = Callable[[InferenceEngine, Capabilities], Publisher]
"""Makes a publisher of the engine that it publishes to and what that engine declares."""

EngineSelection = str | PartOptions | EnginePart | InferenceEngine | None
TrainerSelection = str | PartOptions | TrainerPart | None
StoreSelection = str | PartOptions | StorePart | CheckpointStore | None
PublisherSelection = str | PartOptions | PublisherPart | PublisherFactory | Publisher | None
Selection = EngineSelection | TrainerSelection | StoreSelection | PublisherSelection
"""How a part may be chosen: by name, by an instance of its options, by a part or an object of one's own, or None for
automatic. A trainer may also be named ``module:callable``, a store by a URL whose scheme is its name; what stands
after a ``?`` in it are other options of that store."""

ANY_URL = "fsspec"
"""The store for URLs whose scheme no plugin is called by."""

PRESET: Mapping[Kind, str] = {"store": "file", "publisher": "reload"}
"""What is used where neither the caller nor the environment names a part; other kinds go by priority."""

_HOW_TO_HOST = (
    "a trainer lives in a process of its own: give 'module:callable', which is called there with the trainer's options "
    "as a mapping and returns the trainer, or register it by a plugin (art_register_trainers)"
)
_log = logging.getLogger("art.selection")
_CALLABLE = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


class OwnOptions(PartOptions):
    """Options of an object that the caller made: none, it has its settings already."""

    part: ClassVar[str] = "an object of your own"


class CallableOptions(HostedOptions):
    """Options of a trainer named ``module:callable``: whatever is given, as it is; the callable must judge them."""

    model_config = ConfigDict(frozen=True, extra="allow")
    part: ClassVar[str] = "module:callable"

    @classmethod
    def parse(cls, values: dict[str, Any], besides: Collection[str] = ()) -> Self:
        """Take every value."""
        return cls(**values)


@dataclass(frozen=True)
class Selected:
    """A part, its options and why it was chosen."""

    part: Part
    options: PartOptions
    """What it is to be made with."""
    reason: str
    """For example ``"named by ART_ENGINE"``."""


@dataclass(frozen=True)
class Given:
    """Option values on top of a selection's own."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Options of the part, by name."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The same, or arguments of the library below it: a part that passes those on takes all of them."""
    foreign: Collection[str] = ()
    """Names that other parts have: ignored with a warning where this one lacks them, never an error."""
    besides: Collection[str] = ()
    """Names that may stand beside `values` and were taken out: suggested to who has misspelt one."""


def select(
    plugins: Plugins,
    kind: Kind,
    selection: Selection,
    environment: Environment,
    given: Given | None = None,
) -> Selected:
    """Decide which part a run gets, and with which options.

    Args:
        plugins: Where named parts are found.
        kind: Which kind of part.
        selection: What the caller chose.
        environment: What environment variables say, for where the caller chose nothing.
        given: Option values on top of the selection's.

    Raises:
        ConfigError: An option is unknown or out of range.
        PluginNotFoundError: The name is not installed, or nothing of that kind is.
        PluginUnusableError: The part can't work on this machine.
        PluginError: It can't be loaded, or breaks its contract.
    """
    variables = {
        "engine": environment.engine,
        "trainer": environment.trainer,
        "store": environment.store,
        "publisher": environment.publisher,
    }
    if selection is None or selection == "":
        selected = _unnamed(plugins, kind, variables[kind], given)
    elif isinstance(selection, str):
        selected = _named(plugins, kind, selection, f"named by the option {kind}", given)
    elif isinstance(selection, PartOptions):
        selected = Selected(plugins.part(kind, selection.part), selection, f"named by the option {kind}")
    else:
        part = _own_part(plugins, kind, selection) if isinstance(selection, Part) else _part_of(kind, selection)
        selected = Selected(part, part.options(), f"given by the option {kind}")
    if given is not None:
        selected = replace(selected, options=_merge(selected, given))
    if reason := plugins.unusable(selected.part, selected.options):
        raise PluginUnusableError(f"{kind} {selected.part.name!r} ({selected.reason}) can't work here: {reason}")
    return selected


def is_object(selection: Selection) -> bool:
    """Whether the caller gave a thing that is made already (or a factory), not a way to make one for each model."""
    return not isinstance(selection, str | PartOptions | Part | None)


def _merge(chosen: Selected, given: Given) -> PartOptions:
    options = chosen.part.options
    own = chosen.options.model_dump(exclude_unset=True)
    if options is CallableOptions:
        return options.parse({**given.values, **given.arguments})
    values = dict(given.values)
    if options.pass_through is None:
        values |= given.arguments
    else:
        values |= {key: value for key, value in given.arguments.items() if key in options.model_fields}
        rest = {key: value for key, value in given.arguments.items() if key not in options.model_fields}
        own[options.pass_through] = {**own.get(options.pass_through, {}), **rest}
    ignored = {key for key in values if key not in options.model_fields and key in given.foreign}
    for key in sorted(ignored):
        _log.warning("%r has no option %r; ignored", chosen.part.name, key)
    kept = {key: value for key, value in values.items() if key not in ignored}
    return options.parse({**own, **kept}, given.besides)


def _unnamed(plugins: Plugins, kind: Kind, named: str | None, given: Given | None) -> Selected:
    if named:
        return _named(plugins, kind, named, f"named by ART_{kind.upper()}", given)
    if kind in PRESET:
        return _named(plugins, kind, PRESET[kind], "preset", given)
    if given is not None and (wanted := given.values.keys() - set(given.foreign)):
        everyone = plugins.candidates(kind)
        able = [each for each in everyone if wanted <= each.part.options.model_fields.keys()]
        if 0 < len(able) < len(everyone):
            # its options may say where its library is: whether it can work here is known only with them
            part = next((each.part for each in able if each.unusable is None), able[0].part)
            return Selected(part, part.options(), f"automatic, it has the option {', '.join(sorted(wanted))}")
    part = plugins.best(kind)
    others = [each for each in plugins.candidates(kind) if each.part != part]
    beaten = [f"{each.part.name!r} ({each.part.priority})" for each in others if each.unusable is None]
    unusable = [f"{each.part.name!r} can't work here: {each.unusable}" for each in others if each.unusable]
    reason = (
        f"highest priority ({part.priority}) before {', '.join(beaten)}" if beaten else f"the only {kind} usable here"
    )
    return Selected(part, part.options(), "; ".join([f"automatic, {reason}", *unusable]))


def _named(plugins: Plugins, kind: Kind, name: str, reason: str, given: Given | None) -> Selected:
    if kind == "trainer" and ":" in name:
        elsewhere = given is not None and "python" in given.values
        return Selected(_callable_trainer(name, elsewhere=elsewhere), CallableOptions(), reason)
    if kind == "store" and "://" in name:
        scheme = name.partition("://")[0]
        part = plugins.part(kind, scheme if any(entry.name == scheme for entry in installed()) else ANY_URL)
        url, _, query = name.partition("?")
        given_in_it = dict(parse_qsl(query, keep_blank_values=True))
        return Selected(part, part.options.parse({**given_in_it, "url": url}), reason)
    if kind == "store" and "/" in name:
        raise ConfigError(f"store is {name!r}; a directory is named by its URL: {Path(name).absolute().as_uri()}")
    part = plugins.part(kind, name)
    return Selected(part, part.options(), reason)


def _callable_trainer(name: str, elsewhere: bool) -> TrainerPart:
    if not _CALLABLE.fullmatch(name):
        raise PluginContractError(f"trainer {name!r} is no 'module:callable', e.g. 'my_package.trainer:make_trainer'")
    top = name.partition(":")[0].partition(".")[0]
    if not elsewhere and find_spec(top) is None:
        raise PluginNotFoundError(
            f"trainer {name!r}: there is no module {top!r}; install it, or put its directory on PYTHONPATH"
        )
    return TrainerPart(name=name, options=CallableOptions, create=_only_there)


def _only_there(options: object) -> Trainer:
    raise PluginContractError(f"a trainer is made in its own process only; {_HOW_TO_HOST}")


def _own_part(plugins: Plugins, kind: Kind, part: Part) -> Part:
    """A part that the caller made, held to what a plugin's is held to."""
    check_part(part, kind, part.name)
    if kind == "trainer" and part not in [each.part for each in plugins.candidates(kind)]:
        raise PluginContractError(f"trainer {part.name!r} is a part that no plugin registers; {_HOW_TO_HOST}")
    return part


def _part_of(kind: Kind, made: Any) -> Part:
    """The part that stands for an object of the caller's."""
    what = f"{kind} {made.__name__ if inspect.isclass(made) else type(made).__name__}"
    if kind == "trainer":
        raise PluginContractError(f"{what} is an object; {_HOW_TO_HOST}")
    if kind == "publisher":
        return PublisherPart(name=what, options=OwnOptions, create=_publisher_factory(made, what))
    if inspect.isclass(made):
        raise PluginContractError(f"{what} is a class; give an instance of it")
    if kind == "store":
        require_contract(made, CheckpointStore, what)
        return StorePart(name=what, options=OwnOptions, capabilities=_capabilities(made, what), create=lambda _: made)
    require_contract(made, InferenceEngine, what)
    return EnginePart(name=what, options=OwnOptions, capabilities=_capabilities(made, what), create=lambda _: made)


def _publisher_factory(made: Any, what: str) -> Callable[[Any, InferenceEngine, Capabilities], Publisher]:
    """A factory as it is; a publisher that holds its engine already as a factory of itself."""
    if not callable(made):
        require_contract(made, Publisher, what)
        return lambda options, engine, capabilities: made
    try:
        inspect.signature(made).bind("engine", "capabilities")
    except TypeError as error:
        raise PluginContractError(
            f"{what} is called with the engine and its capabilities and returns a publisher: {error}"
        ) from error

    def create(options: Any, engine: InferenceEngine, capabilities: Capabilities) -> Publisher:
        publisher: Publisher = made(engine, capabilities)
        return publisher

    return create


def _capabilities(made: object, what: str) -> Capabilities:
    declared = getattr(made, "capabilities", Capabilities())
    if not isinstance(declared, Capabilities):
        raise PluginContractError(
            f"{what} has capabilities {declared!r}; expected art_core.capability.Capabilities({{...}})"
        )
    return declared
