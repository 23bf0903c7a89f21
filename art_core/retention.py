"""Which steps are kept, and whose optimizer state."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from art_core.errors import ConfigError


@dataclass(frozen=True)
class Retention:
    """What is kept of a run. A step stays if any of the rules says so; the newest always does.

    Raises:
        ConfigError: A number is below 1.
    """

    latest: int | None = None
    """Keep the newest so many steps. None, as long as no other rule is given: keep all."""
    best: str | None = None
    """Keep the step with the highest mean of this metric in ``history.jsonl``, e.g. ``"val/reward"``."""
    every: int | None = None
    """Keep every step whose number is divisible by this one."""
    optimizer: int | None = 2
    """Keep the optimizer state of the newest so many steps: two thirds of a checkpoint, and only a resume needs it.
    None: of all."""

    def __post_init__(self) -> None:
        for name in ("latest", "every", "optimizer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"retention {name} is {value!r}; allowed: 1 or more, or None")

    def plan(self, steps: Collection[int], scores: Mapping[int, float], protected: Collection[int] = ()) -> Plan:
        """What may go.

        Args:
            steps: The steps that are there.
            scores: Step to its value of `best`'s metric; see `scores`.
            protected: Steps that stay whatever the rules say.
        """
        newest_first = sorted(steps, reverse=True)
        kept = set(protected) | set(newest_first[: self.latest or 1])
        if self.every is not None:
            kept |= {step for step in steps if step % self.every == 0}
        known = {step: score for step, score in scores.items() if step in steps}
        if self.best is not None and known:
            kept.add(max(known, key=lambda step: (known[step], step)))
        ruled = (self.latest, self.best, self.every) != (None, None, None)
        deleted = set(steps) - kept if ruled else set[int]()
        old = newest_first[self.optimizer :] if self.optimizer is not None else []
        return Plan(frozenset(deleted), frozenset(old) - deleted)


@dataclass(frozen=True)
class Plan:
    """What a retention policy lets go."""

    delete: frozenset[int]
    drop_optimizer: frozenset[int]


def scores(history: Iterable[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """A metric's mean by step.

    Args:
        history: Lines of ``history.jsonl``.
        metric: Its full name.
    """
    seen: defaultdict[int, list[float]] = defaultdict(list)
    for line in history:
        if metric in line and math.isfinite(line[metric]):
            seen[line["training_step"]].append(line[metric])
    return {step: sum(values) / len(values) for step, values in seen.items()}
