"""Tell observers. One that raises is logged and counted; it never stops training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pluggy

from art_core.policy import PublishedPolicy

_log = logging.getLogger("art.events")


class Observers:
    """Calls the observer hooks of every registered plugin, each on its own.

    Args:
        manager: The plugin manager whose observers are told.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self.errors = 0
        """How often an observer has raised."""

    def step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        """A step was trained and committed."""
        self._tell("art_on_step", run=run, step=step, metrics=metrics)

    def publish(self, run: str, policy: PublishedPolicy, metrics: Mapping[str, float]) -> None:
        """A step has become the default."""
        self._tell("art_on_publish", run=run, policy=policy, metrics=metrics)

    def swap(self, run: str, edge: str, seconds: float) -> None:
        """An edge of the GPU's hand-over was passed."""
        self._tell("art_on_swap", run=run, edge=edge, seconds=seconds)

    def close(self, run: str) -> None:
        """A run's backend has ended."""
        self._tell("art_on_close", run=run)

    def _tell(self, name: str, **arguments: Any) -> None:
        # One by one, not through the hook call: pluggy stops at the first observer that raises.
        hook: pluggy.HookCaller = self._manager.hook.__dict__[name]
        for implementation in reversed(hook.get_hookimpls()):
            try:
                implementation.function(*(arguments[key] for key in implementation.argnames))
            except Exception:  # noqa: BLE001 - an observer is foreign code
                self.errors += 1
                _log.exception("observer %s of plugin %r failed", name, implementation.plugin_name)
