"""The demo's report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from art_core.checkpoint import read_manifest
from art_core.demo.chart import rewards_chart, speed_chart, stages_chart
from art_core.demo.evaluation import Evaluation
from art_core.demo.place import Place
from art_core.demo.progress import proof
from art_core.demo.run import DemoResult
from art_core.errors import ConfigError
from art_core.run import RunDirectory

_NOISE = 0.05
"""Differences of the mean held-out reward below this are not called a change: 24 samples say no more."""


@dataclass(frozen=True)
class StepRow:
    """One line of the report's table of steps."""

    step: int
    reward: float
    proof: str
    generate_s: float
    train_s: float
    publish_s: float


def require_libraries() -> None:
    """Fail before the training rather than after it.

    Raises:
        ConfigError: A library of the report is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import pygal  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the demo's report needs {error.name!r}, which is not installed; try: pip install 'art-core[demo]'"
        ) from error


def write_report(place: Place, result: DemoResult, history: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``report.html`` into the run's directory.

    Args:
        place: The run.
        result: What came out.
        history: The whole run's training steps, oldest first; at least one.

    Returns:
        The report's path.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("art_core.demo").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        served=result.served,
        finding=finding(result.before, result.after),
        charts={
            "Mean reward of each step's rollouts": rewards_chart(history),
            "Where each step's time went (seconds)": stages_chart(history),
            "Generated tokens per second": speed_chart(history),
        },
        rows=[_row(record) for record in history],
        before=result.before,
        after=result.after,
        answers=list(zip(result.before.answers, result.after.answers, strict=True)),
        environment=_environment(place, result.seed, history[-1]["step"]),
    )
    path = place.directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def finding(before: Evaluation, after: Evaluation) -> str:
    """What rose, in words that claim no more than the figures show.

    Args:
        before: Held-out answers before training.
        after: Held-out answers after it.
    """
    rise, greedy_rise = after.sampled - before.sampled, after.greedy - before.greedy
    figures = (
        f"On held-out prompts the mean reward of sampled answers went from {before.sampled:.2f} to "
        f"{after.sampled:.2f}, that of greedy answers from {before.greedy:.2f} to {after.greedy:.2f}."
    )
    if rise < _NOISE:
        return f"{figures} That is no rise worth the name: the model has not learned the task yet."
    share = min(1.0, max(0.0, before.greedy - before.sampled) / rise)
    if share > 0.5:
        return (
            f"{figures} Greedy answers started high, so most of the rise (about {share:.0%}) is sharpening: less "
            "sampling noise, so that the model says more often what it could already say at its best."
        )
    kind = "sampled and greedy answers both rose" if greedy_rise >= _NOISE else "only sampled answers rose"
    return f"{figures} Greedy answers did not start far above sampled ones, and {kind}."


def _row(record: Mapping[str, Any]) -> StepRow:
    return StepRow(
        step=record["step"],
        reward=record["train/reward"],
        proof=proof(record),
        generate_s=record.get("time/step_generate_s", 0.0),
        train_s=record.get("time/step_train_s", 0.0),
        publish_s=record.get("time/step_publish_s", 0.0),
    )


def _environment(place: Place, seed: int, step: int) -> dict[str, str]:
    checkpoint = RunDirectory(place.directory).step_directory(step)
    manifest = read_manifest(checkpoint)
    return {
        "base model": f"{manifest.base_model.name} (digest {manifest.base_model.digest[:16]})",
        "seed": f"{seed} (prompts, requests and the adapter's first weights)",
        "processor cores": str(os.cpu_count()),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "art-core": version("art-core"),
        **manifest.versions,
    }
