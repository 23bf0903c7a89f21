"""What `model.log` writes, in W&B: one run for each run of ours, for ever, resumed by its id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art_core.run import LogRecord
from art_wandb.name import artifact_name, project_name
from art_wandb.process import WANDB

LOG_S = 60.0
"""A call to W&B that takes longer is given up; ``history.jsonl`` has the line, and the next one goes on."""

_observed: defaultdict[str, dict[Path, Mapping[str, Any]]] = defaultdict(dict)
"""Runs that were told of, by name: where they stand here, and in W&B."""


def log(run: str, record: LogRecord) -> None:
    """Add a line to the run in W&B, and the step's trajectories to its files."""
    where = record.run_path
    _observed[run][where] = _place(where, record.entity or "")
    line = {**record.metrics, "training_step": record.step}
    file = [str(record.trajectories), str(where)] if record.trajectories else []
    data = {"place": _observed[run][where], "line": line, "config": dict(record.config), "file": file}
    WANDB.call_here("log", LOG_S, data)


def close(run: str) -> None:
    """Send what is left, and end the run until it is resumed."""
    for place in _observed.pop(run, {}).values():
        WANDB.call_here("finish", LOG_S, {"project": place["project"], "id": place["id"]})


def _place(where: Path, entity: str) -> Mapping[str, Any]:
    project, run = where.parents[1].name, where.name
    return {"entity": entity, "project": project_name(project), "id": artifact_name(run), "name": run}
