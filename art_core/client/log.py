"""What `model.log` writes: every trajectory as parquet, and one line of metrics per call."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from openai.types.chat.chat_completion import Choice

from art_core import disk
from art_core.chat import History, as_item
from art_core.client.account import COSTS, Account, charged, counted, scenario_ids
from art_core.client.metric import Added
from art_core.errors import ConfigError
from art_core.retention import scores
from art_core.run import LogRecord, RunDirectory
from art_core.trajectory import Trajectory, TrajectoryGroup

_LEARNING = {"loss", "objective", "offpolicy", "sample_efficiency", "data", "discarded"}
_RUNNING = {"pipeline", "pipeline_settings", "queue", "throughput", "time", "costs", "engine", "publish"}
SECTIONS = frozenset({"train", "val", "test"} | _LEARNING | _RUNNING)
"""First parts of a metric's name that stay as they are; any other name is put under the split."""

FORMAT_VERSION = 1
_APPENDING = threading.Lock()
"""History has one writer at a time; two logs may be under way at once, each in a thread."""


def as_groups(trajectories: Iterable[Trajectory | BaseException | TrajectoryGroup]) -> list[TrajectoryGroup]:
    """Groups as they are, loose trajectories and exceptions as one group."""
    if isinstance(trajectories, TrajectoryGroup):
        return [trajectories]
    items = list(trajectories)
    groups = [item for item in items if isinstance(item, TrajectoryGroup)]
    loose = [item for item in items if not isinstance(item, TrajectoryGroup)]
    return [*groups, TrajectoryGroup(loose)] if loose else groups


def summary(groups: Sequence[TrajectoryGroup], split: str) -> dict[str, float]:
    """Means over all trajectories of reward and metrics, and how many rollouts raised.

    Args:
        groups: What is logged.
        split: First part of every name.

    Returns:
        ``<split>/reward``, ``<split>/reward_std_dev`` (mean over groups of two or more of their population standard
        deviation, 0 where there is none), ``<split>/exception_rate``, ``<split>/<metric>`` (over those that have it)
        and ``<split>/group/<metric>`` (over groups with a trajectory). Costs are sums, not means: see `charged`.
    """
    values: dict[str, list[float]] = {}
    deviations = [float(np.std([t.reward for t in group])) for group in groups if len(group) > 1]
    for group in groups:
        about = [(f"group/{key}", value) for key, value in group.metrics.items() if group.trajectories]
        for trajectory in group:
            about += [*trajectory.metrics.items(), ("reward", trajectory.reward)]
        for key, value in about:
            values.setdefault(key, []).append(float(value))
        values.setdefault("exception_rate", []).extend([0.0] * len(group) + [1.0] * len(group.exceptions))
    means = {key: float(np.mean(of)) for key, of in values.items() if of and not _is_cost(key)}
    means["reward_std_dev"] = float(np.mean(deviations)) if deviations else 0.0
    return {f"{split}/{key}": mean for key, mean in means.items()}


def _is_cost(key: str) -> bool:
    return key.removeprefix("group/").startswith(COSTS)


def sectioned(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Metrics with the split before every name that is in no section of its own.

    Raises:
        ConfigError: One is no number.
    """
    return {
        (key if "/" in key and key.split("/")[0] in SECTIONS else f"{split}/{key}"): _number(key, value)
        for key, value in metrics.items()
    }


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metric {key!r} is {value!r}; allowed: a number") from error


@dataclass(frozen=True)
class LogEntry:
    """What one call of `model.log` writes."""

    groups: Sequence[TrajectoryGroup]
    """Trajectories; an earlier file of that split and step is replaced."""
    split: str
    """For example ``"train"``."""
    step: int
    metrics: Mapping[str, float]
    """Further metrics; they win over the trajectories' own."""
    added: Added
    """What was added by builders; its metrics come on top of all others."""


def write_log(run: RunDirectory, entry: LogEntry, account: Account) -> LogRecord:
    """Write the trajectories of a step and its line of metrics.

    Args:
        run: The run; its directory is made where it does not stand yet.
        entry: What to write.
        account: Sums of the run so far; brought up to date.

    Returns:
        What was written.

    Raises:
        ConfigError: The split is no plain name.
        StoreError: The system refuses.
    """
    split, step = entry.split, entry.step
    if not split.replace("-", "_").replace(".", "_").isidentifier():
        raise ConfigError(f"split is {split!r}; allowed: a plain name such as 'train' or 'val'")
    with disk.disk_errors(f"log step {step}"):
        directory = run.path / "trajectories" / split
        disk.make_directory(directory)
        path = directory / f"{step:04d}.parquet" if entry.groups else None
        if path:
            write_parquet(entry.groups, path)
    line = _line(entry)
    with _APPENDING:
        line |= account.sums(line, run.history)
        if split == "train":
            line = account.unique(scenario_ids(entry.groups) | entry.added.scenarios, run.path) | line
        when = {"training_step": step, "step": step, "recorded_at": datetime.now(UTC).isoformat()}
        run.append_history(line | when)
    return LogRecord(run.path, split, step, line, path)


def _line(entry: LogEntry) -> dict[str, float]:
    """Every metric of a line but the sums over the run; what is no number can't be written as JSON."""
    line = sectioned(entry.metrics, entry.split)
    if entry.groups:
        line = {**counted(entry.groups, entry.split), **summary(entry.groups, entry.split), **line}
    for key, value in [*charged(entry.groups).items(), *sectioned(entry.added.metrics, entry.split).items()]:
        line[key] = line.get(key, 0.0) + value
    return {key: value for key, value in line.items() if math.isfinite(value)}


def write_parquet(groups: Sequence[TrajectoryGroup], path: Path) -> None:
    """Write trajectories as parquet, whole or not at all.

    ``group_json`` and ``trajectory_json`` hold everything, token ids and logprobs too; the other columns are for
    analysis.

    Args:
        groups: One row per trajectory.
        path: Target file, replaced if it stands.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(_rows(groups)), schema=_schema()), sink, compression="zstd")
    disk.replace(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path) -> list[TrajectoryGroup]:
    """The groups that `write_parquet` wrote, but for groups without any trajectory.

    Args:
        path: A file under ``trajectories/``.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["group_index", "group_json", "trajectory_json"])
    groups: dict[int, TrajectoryGroup] = {}
    for row in table.to_pylist():
        index = row["group_index"]
        groups.setdefault(index, TrajectoryGroup.model_validate_json(row["group_json"]))
        groups[index].trajectories.append(Trajectory.model_validate_json(row["trajectory_json"]))
    return list(groups.values())


def _schema() -> Any:
    import pyarrow as pa

    text, texts = pa.large_string(), pa.list_(pa.string())
    message = pa.struct(
        [("role", text), ("content", text), ("tool_calls", text), ("tool_call_id", text), ("trainable", pa.bool_())]
    )
    columns = {"format_version": pa.int16(), "group_index": pa.int64(), "trajectory_index": pa.int64()}
    columns |= dict.fromkeys(("group_json", "trajectory_json", "group_metadata", "group_metrics"), text)
    columns |= {"group_logs": texts, "reward": pa.float64()}
    columns |= dict.fromkeys(("metrics", "metadata", "tools"), text)
    columns |= {"logs": texts, "messages": pa.list_(message)}
    return pa.schema(columns)


def _rows(groups: Sequence[TrajectoryGroup]) -> Iterator[dict[str, Any]]:
    for group_index, group in enumerate(groups):
        about_group = {
            "format_version": FORMAT_VERSION,
            "group_index": group_index,
            "group_json": group.model_dump_json(exclude={"trajectories"}),
            "group_metadata": _json(group.metadata),
            "group_metrics": _json(group.metrics),
            "group_logs": group.logs,
        }
        for index, trajectory in enumerate(group):
            chat = next(iter(trajectory.histories()), trajectory)
            yield about_group | {
                "trajectory_index": index,
                "trajectory_json": trajectory.model_dump_json(),
                "reward": trajectory.reward,
                "metrics": _json(trajectory.metrics),
                "metadata": _json(trajectory.metadata),
                "tools": _json(chat.tools),
                "logs": trajectory.logs,
                "messages": _messages(chat),
            }


def _messages(history: History) -> list[dict[str, Any]]:
    rows = []
    for item, message in zip(history.messages_and_choices, map(dict, history.messages()), strict=True):
        content, calls = message.get("content"), message.get("tool_calls")
        rows.append(
            {
                "role": message.get("role"),
                "content": content if isinstance(content, str | None) else _json(content),
                "tool_calls": _json(calls),
                "tool_call_id": message.get("tool_call_id"),
                "trainable": isinstance(as_item(item), Choice),
            }
        )
    return rows


def _json(value: Any) -> str | None:
    return json.dumps(value) if value else None


def best_step(history: Iterable[Mapping[str, Any]], metric: str) -> int | None:
    """The step with the highest mean of a metric; of several the newest; None where no line has a finite one.

    Args:
        history: Lines of ``history.jsonl``.
        metric: For example ``"val/reward"``.
    """
    means = scores(history, metric)
    return max(means, key=lambda step: (means[step], step), default=None)
