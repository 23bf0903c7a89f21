"""In the process: W&B's runs. A run of ours is one run of W&B's, for ever, by its id."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import wandb

from art_wandb.failure import wandb_errors

STEP = "training_step"
"""What every metric is drawn over: W&B's own counter only ever rises, and a step may be logged late."""

INIT_S, FINISH_S = 30.0, 60.0


@dataclass(frozen=True)
class Place:
    """A run in W&B."""

    entity: str
    project: str
    id: str
    """Also the name of its checkpoints' artifact."""
    name: str
    """As people see it."""


class Runs:
    """The runs that are open: those that are observed, and the one that has uploaded last.

    Args:
        directory: Where the SDK keeps what it is about.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: dict[Place, wandb.Run] = {}
        self._observed: set[Place] = set()
        self._lock = threading.Lock()
        self._upload = threading.Lock()

    @property
    def observing(self) -> bool:
        """Whether a run is observed."""
        return bool(self._observed)

    @contextmanager
    def uploading(self, place: Place) -> Iterator[wandb.Run]:
        """The run, for an upload; one at a time. It stays open until another one uploads, or the process is idle."""
        with self._upload:
            with self._lock:
                for other in self._open.keys() - self._observed - {place}:
                    self._open.pop(other).finish()
                run = self._opened(place)
            yield run

    def observed(self, place: Place) -> wandb.Run:
        """The run, which stays open until it is finished."""
        with self._lock:
            run = self._opened(place)
            if place not in self._observed:
                run.define_metric(STEP, hidden=True)
                run.define_metric("*", step_metric=STEP)
                self._observed.add(place)
            return run

    def finish(self, project: str, id: str) -> None:
        """End a run, after all that was told of it is sent."""
        with self._lock, wandb_errors(f"finish run {project}/{id}"):
            for place in [each for each in self._open if (each.project, each.id) == (project, id)]:
                self._observed.discard(place)
                self._open.pop(place).finish()

    def _opened(self, place: Place) -> wandb.Run:
        if place not in self._open:
            self._open[place] = self._begin(place)
        return self._open[place]

    def _begin(self, place: Place) -> wandb.Run:
        with wandb_errors(f"open run {place.entity}/{place.project}/{place.id}"):
            return wandb.init(
                entity=place.entity or None,
                project=place.project,
                id=place.id,
                name=place.name,
                resume="allow",
                reinit="create_new",
                dir=self._directory,
                settings=wandb.Settings(**SETTINGS),
            )


SETTINGS: Mapping[str, Any] = {
    # what is told of the machine and the program is not ours to tell
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "silent": True,
    # who waits for us tries again by himself
    "finish_timeout": FINISH_S,
    "init_timeout": INIT_S,
    # a program that is killed has not sent more than this many last seconds of what it was told of
    "x_file_stream_transmit_interval": 2.0,
    "x_file_transfer_retry_max": 1,
    "x_file_transfer_retry_wait_max_seconds": 2.0,
    "x_graphql_retry_max": 1,
    "x_graphql_retry_wait_max_seconds": 2.0,
    "x_graphql_timeout_seconds": 30.0,
}
