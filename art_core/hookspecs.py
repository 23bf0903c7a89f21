"""Every hook of ART. Hooks register or observe; they never choose, and never run per token or request.

A plugin is a module (the target of an entry point in group ``art_core``) whose functions carry `hookimpl`:

    from art_core.hookspecs import hookimpl

    @hookimpl
    def art_register_engines(register): register(EnginePart(name="mine", ...))

The entry point's name is the part's name: ``engine="mine"`` loads the entry point ``mine`` and no other. Hooks are
ordinary functions (pluggy does not await). An observer that raises is logged and counted, and never stops training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from art_core.part import EnginePart, PublisherPart, StorePart, TrainerPart
    from art_core.policy import PublishedPolicy
    from art_core.run import LogRecord

PROJECT = "art_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def art_register_engines(register: Callable[[EnginePart], None]) -> None:
    """Register inference engines. Called once, when the plugin is loaded.

    Args:
        register: Call it with each `EnginePart`. Return value: ignored. Since 0.1.
    """


@hookspec
def art_register_trainers(register: Callable[[TrainerPart], None]) -> None:
    """Register trainers. Called once, when the plugin is loaded.

    Args:
        register: Call it with each `TrainerPart`. Return value: ignored. Since 0.1.
    """


@hookspec
def art_register_stores(register: Callable[[StorePart], None]) -> None:
    """Register checkpoint stores. Called once, when the plugin is loaded.

    Args:
        register: Call it with each `StorePart`. Return value: ignored. Since 0.1.
    """


@hookspec
def art_register_publishers(register: Callable[[PublisherPart], None]) -> None:
    """Register publishers. Called once, when the plugin is loaded.

    Args:
        register: Call it with each `PublisherPart`. Return value: ignored. Since 0.1.
    """


@hookspec
def art_on_step(run: str, step: int, metrics: Mapping[str, float]) -> None:
    """Observe a step that was trained and committed, before it is published.

    Args:
        run: The run's name.
        step: The step's number.
        metrics: The trainer's metrics. Return value: ignored. Since 0.1.
    """


@hookspec
def art_on_publish(run: str, policy: PublishedPolicy, metrics: Mapping[str, float]) -> None:
    """Observe a step that has become the default.

    Args:
        run: The run's name.
        policy: What is served, with its proof.
        metrics: Timings of the publication. Return value: ignored. Since 0.1.
    """


@hookspec
def art_on_swap(run: str, edge: str, seconds: float) -> None:
    """Observe an edge of the hand-over of the GPU between engine and trainer. Nothing hands one over yet.

    Args:
        run: The run's name.
        edge: Name of the edge, e.g. ``"engine asleep"``.
        seconds: Its duration. Return value: ignored. Since 0.1.
    """


@hookspec
def art_on_log(run: str, record: LogRecord) -> None:
    """Observe what `model.log` has written. Called in a thread of its own, so it may take its time.

    Args:
        run: The run's name.
        record: The metrics, and where the trajectories stand. Return value: ignored. Since 0.1.
    """


@hookspec
def art_on_close(run: str) -> None:
    """Observe the end of a run's backend, after everything is stopped.

    Args:
        run: The run's name. Return value: ignored. Since 0.1.
    """
