"""In the process: what can be called of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import wandb

from art_wandb import artifact
from art_wandb.artifact import Content, Shelf
from art_wandb.failure import wandb_errors
from art_wandb.run import SETTINGS, Place, Runs


class Desk:
    """Every public method can be called with JSON arguments, from any thread.

    Args:
        directory: Where the SDK keeps what it is about.
    """

    def __init__(self, directory: str) -> None:
        wandb.setup(wandb.Settings(**SETTINGS))
        self.opened = Runs(directory)
        """The runs that are open."""
        self._entered: dict[str | None, str] = {}

    @cached_property
    def _api(self) -> wandb.Api:
        with wandb_errors("log in to W&B"):
            return wandb.Api()

    def enter(self, entity: str | None) -> str:
        """Make sure that the key is one; the entity that is meant."""
        if entity not in self._entered:
            with wandb_errors("log in to W&B"):
                default: str = self._api.default_entity or self._api.viewer.entity
            self._entered[entity] = entity or default
        return self._entered[entity]

    def runs(self, entity: str, kind: str, keys: Sequence[str]) -> object:
        """See `art_wandb.artifact.runs`."""
        return artifact.runs(self._api, entity, kind, keys)

    def versions(self, shelf: Mapping[str, str]) -> object:
        """See `art_wandb.artifact.versions`."""
        return artifact.versions(self._api, Shelf(**shelf))

    def add(self, shelf: Mapping[str, str], run_name: str, content: Mapping[str, Any], timeout_s: float) -> None:
        """See `art_wandb.artifact.add`."""
        place = Place(shelf["entity"], shelf["project"], content["run_id"], run_name)
        with self.opened.uploading(place) as run:
            artifact.add(self._api, run, Shelf(**shelf), Content(**content), timeout_s)

    def fetch(self, shelf: Mapping[str, str], version: int, files: Mapping[str, int], directory: str) -> object:
        """See `art_wandb.artifact.fetch`."""
        return artifact.fetch(self._api, Shelf(**shelf), version, files, Path(directory))

    def remove(self, shelf: Mapping[str, str], gone: Sequence[int]) -> None:
        """See `art_wandb.artifact.remove`."""
        artifact.remove(self._api, Shelf(**shelf), gone)

    def mark(self, shelf: Mapping[str, str], version: int, metadata: Mapping[str, Any], aliases: Sequence[str]) -> None:
        """See `art_wandb.artifact.mark`."""
        artifact.mark(self._api, Shelf(**shelf), version, metadata, aliases)

    def now(self) -> float:
        """See `art_wandb.artifact.server_time_s`."""
        return artifact.server_time_s(str(self._api.settings["base_url"]))

    def log(
        self, place: Mapping[str, str], line: Mapping[str, Any], config: Mapping[str, Any], file: Sequence[str]
    ) -> None:
        """Add a line to a run's history and to its configuration, and a file of the directory beside it."""
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
