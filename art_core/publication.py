"""The publishers of a run: the one whose steps the engine serves, and those that bring them elsewhere as well.

A run may name several. Exactly one of them serves: it decides whether the step becomes the default, and its failure is
the step's. The others get the step once it is served, all at once; what becomes of each is said in the result, and one
that fails undoes nothing: the step serves, the other publishers have it. Such a publisher gets the next step anyway,
and at the next start of the run the newest one again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from art_core.capability import Capabilities
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Environment
from art_core.errors import ConfigError, PublishError, RunError
from art_core.part import PublisherPart, require_contract
from art_core.plugins import Plugins
from art_core.policy import PublishedPolicy
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.publisher import Publisher
from art_core.selection import PublisherSelection, Selected, select

PublisherSelections = PublisherSelection | Sequence[PublisherSelection]
"""One publisher, or several as a list."""

_log = logging.getLogger("art.publisher")


@dataclass(frozen=True)
class Publication:
    """What a publisher that brings steps elsewhere made of one."""

    policy: PublishedPolicy | None
    """Where it is served now; None: it failed."""
    error: RunError | None
    """Why; None: it did not fail."""
    seconds: float


def select_publishers(plugins: Plugins, selection: PublisherSelections, environment: Environment) -> Sequence[Selected]:
    """Decide which publishers a run gets, the serving one first.

    Args:
        plugins: Where named publishers are found.
        selection: What the caller chose; a list holds one that serves.
        environment: What environment variables say; several names stand with commas between them.

    Raises:
        ConfigError: None of them serves, or several do, or one is named twice.
        PluginError: One can't be used.
    """
    named = environment.publisher or ""
    if selection in (None, "") and "," in named:
        selection = [name.strip() for name in named.split(",")]
    wanted = [*selection] if isinstance(selection, Sequence) and not isinstance(selection, str) else [selection]
    chosen = [select(plugins, "publisher", each, environment) for each in wanted]
    names = [each.part.name for each in chosen]
    serving = [each for each in chosen if cast(PublisherPart, each.part).serves]
    if len(serving) != 1 or len(set(names)) != len(names):
        raise ConfigError(
            f"the publishers are {', '.join(map(repr, names)) or 'none'}, of which {len(serving)} serve; allowed: each "
            f"once, and exactly one that serves, e.g. publisher=['reload', …]"
        )
    return [*serving, *(each for each in chosen if each is not serving[0])]


def make_publishers(
    chosen: Sequence[Selected], engine: InferenceEngine, capabilities: Capabilities
) -> tuple[Publisher, Mapping[str, Publisher]]:
    """Make the publishers that were selected.

    Args:
        chosen: The serving one first.
        engine: What it publishes to.
        capabilities: What the engine declares.

    Returns:
        The one that serves, and the others by name.

    Raises:
        PluginContractError: One does not keep the contract.
    """
    made: dict[str, Publisher] = {}
    for each in chosen:
        part = cast(PublisherPart, each.part)
        publisher = made[part.name] = part.create(each.options, engine, capabilities)
        require_contract(publisher, Publisher, f"what publisher {part.name!r} creates")
    (_, serving), *others = made.items()
    return serving, dict(others)


async def publish_elsewhere(
    publishers: Mapping[str, Publisher], name: str, stored: StoredCheckpoint
) -> dict[str, Publication]:
    """Bring a served step to every other publisher, at once; never raises for one that fails.

    Args:
        publishers: By name.
        name: The step's public name.
        stored: The step.

    Returns:
        What each has made of it, by its name.
    """
    calls = [_publish(each, publisher, name, stored) for each, publisher in publishers.items()]
    return dict(zip(publishers, await asyncio.gather(*calls), strict=True))


def publication_metrics(publications: Mapping[str, Publication]) -> dict[str, float]:
    """Whether each has the step, and how long that took."""
    metrics: dict[str, float] = {}
    for name, each in publications.items():
        metrics |= {f"publish/to_{name}": float(each.error is None), f"publish/to_{name}_s": each.seconds}
    return metrics


async def _publish(which: str, publisher: Publisher, name: str, stored: StoredCheckpoint) -> Publication:
    start, policy, error = time.monotonic(), None, None
    try:
        policy = await publisher.publish(name, stored)
    except RunError as problem:
        error = problem
    except Exception as problem:  # noqa: BLE001 - foreign code
        error = PublishError(f"publisher {which!r} failed: {type(problem).__name__}: {problem}", step=stored.step)
        error.__cause__ = problem
    if error is not None:
        _log.warning("step %d is served, but publisher %r does not have it: %s", stored.step, which, error)
    return Publication(policy, error, time.monotonic() - start)
