"""In the process: what can be called of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import wandb

from art_core.errors import StoreError
from art_wandb import artifact
from art_wandb.artifact import Content, Shelf
from art_wandb.failure import wandb_errors
from art_wandb.run import SETTINGS, Place, Runs

API_S = 30
"""A question to the server that takes longer, with all tries of the SDK's, is given up."""

ONLINE = ("online", "run", "shared")
"""Values of ``WANDB_MODE`` with which the SDK talks to the server."""


class Desk:
    """Every public method can be called with JSON arguments, from any thread.

    Args:
        directory: Where the SDK keeps what it is about.
    """

    def __init__(self, directory: str) -> None:
        self._mode = wandb.setup(wandb.Settings(**SETTINGS)).settings.mode
        self.opened = Runs(directory)
        """The runs that are open."""
        self._entered: dict[str | None, str] = {}

    @cached_property
    def _api(self) -> wandb.Api:
        with wandb_errors("log in to W&B"):
            return wandb.Api(timeout=API_S)

    def enter(self, entity: str | None, again: bool = False) -> str:
        """Ask the server whether it knows the key.

        Args:
            entity: Which is wanted; None: the key's default.
            again: Ask also where that is known already.

        Returns:
            The entity that is meant.

        Raises:
            StoreError: It does not, or W&B is turned off.
        """
        if entity in self._entered and not again:
            return self._entered[entity]
        if self._mode not in ONLINE:
            raise StoreError(
                f"WANDB_MODE is {self._mode!r}, so nothing reaches W&B; unset it, or do without W&B's store, publisher "
                f"and observer"
            )
        with wandb_errors("log in to W&B"):
            api = wandb.Api(timeout=API_S)
            default: str = api.default_entity or api.viewer.entity
        self._entered[entity] = entity or default
        return self._entered[entity]

    def runs(self, entity: str, kind: str, keys: Sequence[str]) -> object:
        """See `art_wandb.artifact.runs`. Asks by a new API: one that has listed projects knows of no later ones."""
        with wandb_errors("log in to W&B"):
            api = wandb.Api(timeout=API_S)
        return artifact.runs(api, entity, kind, keys)

    def versions(self, shelf: Mapping[str, str]) -> object:
        """See `art_wandb.artifact.versions`."""
        return artifact.versions(self._api, Shelf(**shelf))

    def add(self, shelf: Mapping[str, str], run_name: str, content: Mapping[str, Any], timeout_s: float) -> object:
        """See `art_wandb.artifact.add`."""
        place = Place(shelf["entity"], shelf["project"], content["run_id"], run_name)
        with self.opened.uploading(place) as run:
            return artifact.add(run, Shelf(**shelf), Content(**content), timeout_s)

    def fetch(self, shelf: Mapping[str, str], version: int, files: Mapping[str, int], directory: str) -> object:
        """See `art_wandb.artifact.fetch`."""
        return artifact.fetch(self._api, Shelf(**shelf), version, files, Path(directory))

    def remove(self, shelf: Mapping[str, str], gone: Sequence[int]) -> None:
        """See `art_wandb.artifact.remove`."""
        artifact.remove(self._api, Shelf(**shelf), gone)

    def mark(
        self, shelf: Mapping[str, str], version: int, metadata: Mapping[str, Any], aliases: Sequence[str]
    ) -> object:
        """See `art_wandb.artifact.mark`."""
        return artifact.mark(self._api, Shelf(**shelf), version, metadata, aliases)

    def now(self) -> float:
        """See `art_wandb.artifact.server_time_s`."""
        return artifact.server_time_s(str(self._api.settings["base_url"]))

    def log(
        self, place: Mapping[str, str], line: Mapping[str, Any], config: Mapping[str, Any], file: Sequence[str]
    ) -> None:
        """Add a line to a run's history and to its configuration, and a file of the directory beside it.

        Where the user has disabled W&B nobody is told.
        """
        if self._mode == "disabled":
            return
        where = Place(**{**place, "entity": self.enter(place["entity"] or None)})
        run = self.opened.observed(where)
        with wandb_errors(f"log to run {where.project}/{where.id}"):
            if config:
                run.config.update(dict(config), allow_val_change=True)  # type: ignore[no-untyped-call]
            run.log(dict(line))
            if file:
                path, root = file
                run.save(path, base_path=root, policy="now")

    def finish(self, project: str, id: str) -> None:
        """See `art_wandb.run.Runs.finish`."""
        self.opened.finish(project, id)
