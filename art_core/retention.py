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
        ConfigError: A number is no whole one from 1, or the metric no name.
    """

    latest: int | None = None
    """Keep the newest so many steps. None, as long as no other rule is given: keep all."""
    best: str | None = None
    """Keep the step with the highest mean of this metric in ``history.jsonl``, e.g. ``"val/reward"``, and those whose
    value is not known: later than the last that has one, for it may still come, or earlier than the first, as after the
    loss of a machine, whose history no store holds."""
    every: int | None = None
    """Keep every step whose number is divisible by this one."""
    optimizer: int | None = 2
    """Keep the optimizer state of the newest so many steps: two thirds of a checkpoint, and only a resume needs it.
    None: of all."""

    def __post_init__(self) -> None:
        for name in ("latest", "every", "optimizer"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"retention {name} is {value!r}; allowed: 1 or more, or None")
        if self.best is not None and not (isinstance(self.best, str) and self.best):
            raise ConfigError(f"retention best is {self.best!r}; allowed: the name of a metric, or None")

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
        if self.best is not None:
            first, last = min(scores, default=math.inf), max(scores, default=-math.inf)
            kept |= {step for step in steps if not first <= step <= last}
            known = scores.keys() & set(steps)
            kept |= {max(known, key=lambda step: (scores[step], step))} if known else set()
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
