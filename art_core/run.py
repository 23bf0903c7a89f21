"""A run's directory: who holds it, what it was made for, how far it got.

    <path>/<project>/models/<run>/
      run.json        what the run was made for; never changed once it has a step
      state.json      the client's own state
      history.jsonl   one line per logged step
      scenarios.jsonl the ids of scenarios, a list per logged step that brought new ones
      lock            held by the process that trains; names it
      checkpoints/0007/  trajectories/<split>/0007.parquet  logs/

Names in ``checkpoints`` that start with a dot are no checkpoints: what a process was writing or deleting when it
ended. The next process that holds the lock removes them, and other files that one was replacing (``.state.json.new``).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from art_core import disk
from art_core.config import LoRAConfig
from art_core.errors import ConfigError, RunLockedError, StoreError
from art_core.foreign_run import refuse_foreign
from art_core.process import close_in_forks, close_private
from art_core.run_key import plain_name

_STAGING, _TRASH = ".staging-", ".trash-"
LEFTOVERS = (_STAGING, _TRASH)
"""How names in ``checkpoints`` begin that a process left which was ended half-way."""


class RunRecord(BaseModel):
    """``run.json``: what a run was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = Field(default=1, ge=1, le=1)
    project: str
    run: str
    base_model: str
    """As the user gave it."""
    lora: LoRAConfig
    created_at: datetime


@dataclass(frozen=True)
class LogRecord:
    """One call of `model.log`, as it was written."""

    run_path: Path
    """The run's directory: ``<root>/<project>/models/<run>``."""
    split: str
    step: int
    metrics: Mapping[str, float]
    """The line of ``history.jsonl``, sums over the run among it."""
    trajectories: Path | None
    """Parquet file of the trajectories; None where there were none."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the program says of the run; see `model.update_wandb_config`."""
    entity: str | None = None
    """Whose run it is, where the model says so: a team or a user in W&B."""


class RunDirectory:
    """One run's files. Many may read it; the one that `create_or_open` returned may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.log_directory = path / "logs"
        self.checkpoints = path / "checkpoints"
        self._lock_fd: int | None = None

    @classmethod
    def create_or_open(
        cls, root: Path, project: str, run: str, base_model: str | None = None, lora: LoRAConfig | None = None
    ) -> Self:
        """Take the run's lock, make its directory or check that it was made for the same, remove what dead ones left.

        Args:
            root: Directory of all projects; made if absent.
            project: Project name.
            run: Run name, unique in the project.
            base_model: The base model as the user gave it; None: the run is there and is only held, as it is.
            lora: The adapter's shape.

        Raises:
            ConfigError: A name is not a plain one, the run has steps of another base model or LoRA shape, or it is
                another backend's.
            RunLockedError: Another process holds the run; it is named.
            StoreError: The system refuses.
        """
        path = run_path(root, project, run)
        refuse_foreign(path)
        opened = cls(path)
        with disk.disk_errors(f"open run {run!r}"):
            places = (opened.checkpoints, opened.log_directory, path / "trajectories")
            for directory in places if base_model is not None else ():
                disk.make_directory(directory)
            try:
                opened._lock()
                if base_model is not None:
                    now, lora = datetime.now(UTC), lora or LoRAConfig()
                    wanted = RunRecord(project=project, run=run, base_model=base_model, lora=lora, created_at=now)
                    opened._identify(wanted)
                opened._sweep()
            except BaseException:
                opened.close()
                raise
        return opened

    def close(self) -> None:
        """Let go of the lock; idempotent."""
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            close_private(self._lock_fd)
            self._lock_fd = None

    def record(self) -> RunRecord:
        """What the run was made for.

        Raises:
            StoreError: ``run.json`` is missing or breaks the schema.
        """
        path = self.path / "run.json"
        with disk.disk_errors("read a run"):
            data = disk.read(path)
        try:
            return RunRecord.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(f"{path} is damaged: {error}") from error

    def step_directory(self, step: int) -> Path:
        """Where a step's checkpoint stands once it is committed."""
        return self.checkpoints / f"{step:04d}"

    def stage(self) -> Path:
        """A new empty directory for a checkpoint's files, beside where it will stand; a commit takes it over.

        Raises:
            StoreError: The system refuses.
        """
        directory = self.checkpoints / f"{_STAGING}{uuid.uuid4().hex}"
        with disk.disk_errors("stage a checkpoint"):
            directory.mkdir(parents=True)
        return directory

    def discard(self, directory: Path) -> None:
        """Remove a directory of `checkpoints` so that at any instant it is there whole or not visible; idempotent.

        Raises:
            StoreError: The system refuses.
        """
        trash = self.checkpoints / f"{_TRASH}{uuid.uuid4().hex}"
        with disk.disk_errors(f"remove {directory}"):
            try:
                os.rename(directory, trash)  # noqa: PTH104
            except FileNotFoundError:
                return
            disk.sync(self.checkpoints)
            disk.remove(trash)

    def read_state(self) -> dict[str, Any]:
        """The client's state; empty where none was written.

        Raises:
            StoreError: ``state.json`` is damaged or can't be read.
        """
        path = self.path / "state.json"
        with disk.disk_errors("read a run's state"):
            if not path.exists():
                return {}
            return disk.parse_line(path, 1, disk.read(path), dict)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the client's state, durably and whole.

        Raises:
            StoreError: The system refuses; the old state stands.
        """
        with disk.disk_errors("write a run's state"):
            disk.replace(self.path / "state.json", json.dumps(dict(state)).encode())

    def history(self) -> list[dict[str, Any]]:
        """Every logged line; a last one that a kill cut short is left out.

        Raises:
            StoreError: A line is damaged, or the system refuses.
        """
        with disk.disk_errors("read a run"):
            return disk.json_lines(self.path / "history.jsonl", dict)

    def append_history(self, line: Mapping[str, Any]) -> None:
        """Log one line, durably. What a kill cut short before is removed first.

        Raises:
            StoreError: The system refuses.
        """
        with disk.disk_errors("write a run's history"):
            disk.append_line(self.path / "history.jsonl", json.dumps(dict(line)).encode())

    def _lock(self) -> None:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        close_in_forks(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 4096).decode(errors="replace").strip() or "a process that has not said who it is"
            close_private(fd)
            mine = holder.startswith(f"process {os.getpid()} on {socket.gethostname()} ")
            way_out = ", which is this one: close the backend that has it open" if mine else "; end that process"
            raise RunLockedError(
                f"run {self.name!r} is held by {holder}{way_out}, or choose another run name", run=self.name
            ) from None  # that the lock is taken is all that the system said
        self._lock_fd = fd
        os.ftruncate(fd, 0)
        me = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
        disk.write_all(fd, me.encode())

    def _identify(self, wanted: RunRecord) -> None:
        """Write what the run is for, or check that it is for the same.

        A run without a step has nothing to lose: what was wrong with its first set-up may be mended.
        """
        path = self.path / "run.json"
        made = self.record() if path.exists() else wanted
        fields = ("base model", made.base_model, wanted.base_model), *shape_fields(made.lora, wanted.lora)
        different = [(what, before, now) for what, before, now in fields if before != now]
        has_steps = any(not each.name.startswith(".") for each in self.checkpoints.iterdir())
        if made is wanted or (different and not has_steps):
            disk.replace(path, wanted.model_dump_json(indent=1).encode())
        elif different:
            what, before, now = different[0]
            raise ConfigError(
                f"run {self.name!r} was made with {what} {before!r}, not {now!r}; "
                f"resume it with {before!r}, or choose another run name"
            )

    def _sweep(self) -> None:
        for path in self.checkpoints.iterdir():
            if path.name.startswith(LEFTOVERS):
                disk.remove(path)
        for directory in (self.path, *self.path.glob("trajectories/*")):
            for file in disk.unfinished(directory):
                file.unlink()


def run_path(root: Path, project: str, run: str) -> Path:
    """Where a run stands, whether or not it does.

    Args:
        root: Directory of all projects.
        project: Project name.
        run: Run name.

    Raises:
        ConfigError: A name is not a plain one, or the place leads out of the root through a link.
    """
    root = root.absolute()
    path = root / plain_name("project", project) / "models" / plain_name("run", run)
    for place in (path, path / "checkpoints"):
        if not place.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"{place} leads out of {root} through a link; remove the link")
    return path


def shape_fields(first: LoRAConfig, second: LoRAConfig) -> Iterator[tuple[str, object, object]]:
    """What makes an adapter's shape, by name, of two configurations side by side."""
    yield "LoRA rank", first.rank, second.rank
    yield "LoRA alpha", first.alpha, second.alpha
    yield "LoRA target modules", _modules(first), _modules(second)


def _modules(lora: LoRAConfig) -> list[str] | None:
    return None if lora.target_modules is None else sorted(lora.target_modules)
