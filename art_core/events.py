"""Tell observers. One that raises is logged and counted; it never stops training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from art_core.errors import PluginContractError, PluginNotFoundError
from art_core.plugins import Plugins
from art_core.policy import PublishedPolicy
from art_core.run import LogRecord

_log = logging.getLogger("art.events")


class Observers:
    """Calls the observer hooks of every registered plugin, each on its own.

    Args:
        *managers: The plugin managers whose observers are told.
    """

    def __init__(self, *managers: pluggy.PluginManager) -> None:
        self._managers = managers
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

    def log(self, record: LogRecord) -> None:
        """`model.log` has written."""
        self._tell("art_on_log", run=record.run_path.name, record=record)

    def close(self, run: str) -> None:
        """A run's backend has ended."""
        self._tell("art_on_close", run=run)

    def _tell(self, name: str, **arguments: Any) -> None:
        # One by one, not through the hook call: pluggy stops at the first observer that raises.
        hooks: list[pluggy.HookCaller] = [manager.hook.__dict__[name] for manager in self._managers]
        for implementation in [each for hook in hooks for each in reversed(hook.get_hookimpls())]:
            try:
                implementation.function(*(arguments[key] for key in implementation.argnames))
            except Exception:  # noqa: BLE001 - an observer is foreign code
                self.errors += 1
                _log.exception("observer %s of plugin %r failed", name, implementation.plugin_name)


def audience(shared: Plugins, names: Iterable[str]) -> Observers:
    """Who is told of a model: the observers of all models, and those that it asks for by name.

    Args:
        shared: Where the observers of all models are registered.
        names: Plugins that observe; one that is not installed is warned about.

    Raises:
        PluginError: One of them can't be used.
    """
    own = Plugins()
    for name in names:
        try:
            if not shared.manager.has_plugin(name):
                own.load_observer(name)
        except PluginNotFoundError as error:
            warnings.warn(f"report_metrics: {error}; metrics go to history.jsonl only", stacklevel=5)
    return Observers(shared.manager, own.manager)


def observe(plugins: Plugins, observers: Iterable[object]) -> None:
    """Register observers: objects with `hookimpl` methods, or names of plugins that observe.

    Args:
        plugins: Where they are registered.
        observers: One that is registered already is told once.

    Raises:
        PluginNotFoundError: A name is not installed, or its plugin observes nothing.
        PluginContractError: An observer takes arguments that its hook does not offer.
    """
    manager = plugins.manager
    for observer in observers:
        if isinstance(observer, str):
            plugins.load_observer(observer)
        elif not manager.is_registered(observer):
            try:
                manager.register(observer)
                manager.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginContractError(f"observer {observer!r}: {error}") from error
