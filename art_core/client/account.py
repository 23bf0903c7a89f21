"""What a run has taken so far: wall time, data and cost, per step and summed over the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_core import disk
from art_core.trajectory import TrajectoryGroup

_HOUR_S = 3600.0
COSTS = "costs/"
SCENARIOS = "scenarios.jsonl"


@dataclass
class Account:
    """One model's account. Sums go on where ``history.jsonl`` ends, so they survive a restart."""

    gpu_cost_per_hour_usd: float | None = None
    """None: no cost is written."""
    _since_s: float | None = None
    """When the step under way began; None before the model is registered."""
    _totals: dict[str, float] | None = None
    """Cumulative metrics so far; None until the history was read."""
    _scenarios: set[str] | None = None
    """Ids of the scenarios so far; None until they were read."""

    def start(self) -> None:
        """The first step begins now."""
        self._since_s = time.monotonic()

    def step(self) -> dict[str, float]:
        """A training step has ended and the next one begins: ``time/step_wall_s`` and ``costs/gpu``."""
        if self._since_s is None:
            return {}
        now_s = time.monotonic()
        wall_s, self._since_s = now_s - self._since_s, now_s
        figures = {"time/step_wall_s": wall_s}
        if self.gpu_cost_per_hour_usd is not None:
            figures["costs/gpu"] = wall_s / _HOUR_S * self.gpu_cost_per_hour_usd
        return figures

    def sums(self, line: Mapping[str, float], history: Callable[[], Iterable[Mapping[str, Any]]]) -> dict[str, float]:
        """Costs rolled up, and every per-step figure of a line summed over the run.

        Args:
            line: Metrics about to be logged.
            history: Gives the lines logged before; asked at the first call only.

        Returns:
            ``costs/all`` and a parent for every group of costs; ``time/cum/x_s`` for ``time/step_x_s``,
            ``data/cum/x`` for ``data/step_x`` where x counts something, ``costs/cum/x`` for ``costs/x``.
        """
        if self._totals is None:
            before = [{key: value for key, value in each.items() if "/cum/" in key} for each in history()]
            self._totals = {key: value for each in before for key, value in each.items()}
        costs = _rolled_up(line)
        sums = {}
        for key, value in {**line, **costs}.items():
            cumulative = cumulative_name(key)
            if cumulative is not None and cumulative not in line:
                sums[cumulative] = self._totals[cumulative] = self._totals.get(cumulative, 0.0) + value
        return costs | sums

    def unique(self, ids: Collection[str], run: Path) -> dict[str, float]:
        """How many different scenarios the run has seen, these among them; new ones are written down.

        Args:
            ids: Of a line's scenarios.
            run: The run's directory.

        Returns:
            ``data/cum/num_unique_scenarios``; empty where no ids are given.

        Raises:
            StoreError: The system refuses.
        """
        if not ids:
            return {}
        if self._scenarios is None:
            with disk.disk_errors("read a run's scenarios"):
                found = disk.json_lines(run / SCENARIOS, list)
            self._scenarios = {each for line in found for each in line}
        if new := set(ids) - self._scenarios:
            with disk.disk_errors("write a run's scenarios"):
                disk.append_line(run / SCENARIOS, json.dumps(sorted(new)).encode())
            self._scenarios |= new
        return {"data/cum/num_unique_scenarios": float(len(self._scenarios))}


def cumulative_name(name: str) -> str | None:
    """The name of a metric's sum over the run; None for one that has no use as a sum."""
    section, _, rest = name.partition("/")
    figure = rest.removeprefix("step_")
    if section == "costs" and rest and not rest.startswith("cum/"):
        return f"costs/cum/{rest}"
    if figure == rest:
        return None
    if section == "time" and rest.endswith("_s"):
        return f"time/cum/{figure}"
    if section == "data" and (figure.startswith("num_") or figure.endswith("_tokens")):
        return f"data/cum/{figure}"
    return None


def counted(groups: Sequence[TrajectoryGroup], split: str) -> dict[str, float]:
    """How much the groups of a step hold, rollouts that raised among them.

    Args:
        groups: What is logged.
        split: Of ``train`` the groups whose rewards differ are counted too; of another the names begin with it.
    """
    counts = {
        "data/step_num_scenarios": len(groups),
        "data/step_num_trajectories": sum(len(group) + len(group.exceptions) for group in groups),
        "data/step_num_groups_submitted": len(groups),
    }
    if split != "train":
        return {f"{split}/{key}": float(count) for key, count in counts.items()}
    counts["data/step_num_groups_trainable"] = sum(len({t.reward for t in group}) > 1 for group in groups)
    return {key: float(count) for key, count in counts.items()}


def scenario_ids(groups: Sequence[TrajectoryGroup]) -> set[str]:
    """The ids of scenarios that groups and trajectories name in their metadata, as ``scenario_id``.

    Args:
        groups: What is logged.
    """
    named = [each.metadata.get("scenario_id") for group in groups for each in (group, *group)]
    return {str(each) for each in named if each is not None}


def charged(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """What trajectories and groups say they cost, summed: their metrics called ``costs/...``.

    Args:
        groups: What is logged.
    """
    costs: dict[str, float] = {}
    for metrics in (each.metrics for group in groups for each in (group, *group)):
        for key, value in metrics.items():
            if key.startswith(COSTS):
                costs[key] = costs.get(key, 0.0) + float(value)
    return costs


def _rolled_up(line: Mapping[str, float]) -> dict[str, float]:
    """``costs/a/b`` added to ``costs/a``, and all of them to ``costs/all``; what the line already has stays."""
    leaves = {key: value for key, value in line.items() if key.startswith("costs/") and "/cum/" not in key}
    leaves.pop("costs/all", None)
    sums: dict[str, float] = {}
    for key, value in leaves.items():
        if any(other.startswith(f"{key}/") for other in leaves):
            continue  # a parent that was given: its children are counted
        parts = key.split("/")
        for parent in ("costs/all", *("/".join(parts[:end]) for end in range(2, len(parts)))):
            sums[parent] = sums.get(parent, 0.0) + value
    return {key: value for key, value in sums.items() if key not in line}
