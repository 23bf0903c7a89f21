"""Where a model's run stands, and the program's own state in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PrivateAttr

from art_core.errors import ConfigError

if TYPE_CHECKING:
    from art_core.run import RunDirectory


class RunState(BaseModel):
    """The part of a model that names its run; the state is kept in ``state.json``."""

    name: str
    """Alias for inference."""
    project: str
    run_name: str = ""
    """Name of the run on disk; the name unless given."""
    base_path: str = ".art"
    """Root of all runs; a local backend puts its own here."""

    _config: dict[str, Any] = PrivateAttr(default_factory=dict)

    def update_wandb_config(self, config: Mapping[str, Any]) -> None:
        """Say something of the run that observers get with every line that is logged.

        Args:
            config: Plain data; dicts within dicts are merged.

        Raises:
            ConfigError: It is no dict, or a value was said before and is another one now.
        """
        if not isinstance(config, dict):
            raise ConfigError(f"config is a {type(config).__name__}; allowed: a dict")
        _require_unchanged(self._config, config)
        self._config = _merged(self._config, config)

    def overwrite_state(self, state: Mapping[str, Any]) -> None:
        """Replace the program's own state, kept in ``state.json``."""
        self._run(make=True).write_state(state)

    def merge_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Put keys into the program's state, dicts within dicts likewise, and return all of it."""
        merged = _merged(self.read_state() or {}, state)
        self.overwrite_state(merged)
        return merged

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Older name of `overwrite_state`."""
        warnings.warn("write_state() is deprecated; call overwrite_state()", DeprecationWarning, stacklevel=2)
        self.overwrite_state(state)

    def read_state(self) -> dict[str, Any] | None:
        """The program's state; None where none was written."""
        return self._run().read_state() or None

    def _run(self, *, make: bool = False) -> RunDirectory:
        from art_core import disk
        from art_core.run import RunDirectory

        path = Path(self.base_path) / self.project / "models" / self.run_name
        if make:
            with disk.disk_errors("make a run's directory"):
                disk.make_directory(path.absolute())
        return RunDirectory(path)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(old[key], new[key]) for key in new if _is_dict(old.get(key)) and _is_dict(new[key])}
    return {**old, **new, **both}


def _require_unchanged(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> None:
    for key, value in new.items():
        if _is_dict(old.get(key)) and _is_dict(value):
            _require_unchanged(old[key], value, f"{path}{key}.")
        elif key in old and old[key] != value:
            raise ConfigError(f"W&B config is immutable once set. Conflicting value for '{path}{key}'.")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)
