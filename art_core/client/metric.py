"""Metrics that a program adds while a step is under way; the next `model.log` writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from art_core.errors import ConfigError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


@dataclass
class Added:
    """What was added in a cost context and is not yet written."""

    metrics: dict[str, float] = field(default_factory=dict)
    scenarios: set[str] = field(default_factory=set)
    """Their ids."""


Pending: TypeAlias = dict[str, Added]
"""Cost context to what was added in it."""
CostCalculator: TypeAlias = Callable[[int | None, int | None, str], Mapping[str, float]]
"""Of prompt tokens, completion tokens and cost context: ``costs/...`` in US dollars."""

_active: ContextVar[MetricsBuilder] = ContextVar("active_metrics_builder")


class MetricsBuilder:
    """Adds to what the next `model.log` writes; values of one name add up.

    Args:
        cost_context: ``train`` belongs to the split of that name, ``eval`` to ``val`` and ``test``, any other to the
            split of its own name.
        pending: What all builders of one model share.
    """

    def __init__(self, cost_context: str, pending: Pending | None = None) -> None:
        if not cost_context.strip():
            raise ConfigError(f"cost_context is {cost_context!r}; allowed: a name such as 'train' or 'eval'")
        self.cost_context = cost_context.strip()
        self._pending: Pending = {} if pending is None else pending

    def add_cost(self, path: str, usd: float) -> None:
        """Add to ``costs/<path>``, e.g. ``train/judge``.

        Args:
            path: What was paid for.
            usd: US dollars.
        """
        self.add_metric(f"costs/{path.strip('/')}", usd)

    def add_metric(self, key: str, value: float) -> None:
        """Add to a metric.

        Args:
            key: With its section, e.g. ``time/step_tool_s``.
            value: What is added.

        Raises:
            ConfigError: The name has no section, or is one of the sums that are kept by themselves.
        """
        section, _, rest = key.partition("/")
        if not section or not rest or rest.startswith("cum/"):
            raise ConfigError(f"metric {key!r} can't be added to; allowed: '<section>/<name>', and no 'cum/' after it")
        metrics = self._pending.setdefault(self.cost_context, Added()).metrics
        metrics[key] = metrics.get(key, 0.0) + float(value)

    def add_data(
        self,
        step_num_scenarios: int | None = None,
        step_rollout_tokens: int | None = None,
        scenario_ids: list[str] | None = None,
    ) -> None:
        """Add to ``data/step_num_scenarios`` and ``data/step_rollout_tokens``.

        Args:
            step_num_scenarios: Scenarios.
            step_rollout_tokens: Tokens.
            scenario_ids: Which scenarios; of the context ``train`` they count in ``data/cum/num_unique_scenarios``.
        """
        self._pending.setdefault(self.cost_context, Added()).scenarios.update(scenario_ids or ())
        self._add({"data/step_num_scenarios": step_num_scenarios, "data/step_rollout_tokens": step_rollout_tokens})

    def add_user_timing(
        self,
        step_wall_s: float | None = None,
        step_rollout_s: float | None = None,
        step_eval_s: float | None = None,
    ) -> None:
        """Add to ``time/step_wall_s``, ``time/step_rollout_s`` and ``time/step_eval_s``; seconds each."""
        times = {"wall": step_wall_s, "rollout": step_rollout_s, "eval": step_eval_s}
        self._add({f"time/step_{key}_s": value for key, value in times.items()})

    def add_idle_times(
        self, step_trainer_idle_s: float | None = None, step_rollout_idle_s: float | None = None
    ) -> None:
        """Add to ``time/step_trainer_idle_s`` and ``time/step_rollout_idle_s``; seconds each."""
        times = {"trainer": step_trainer_idle_s, "rollout": step_rollout_idle_s}
        self._add({f"time/step_{key}_idle_s": value for key, value in times.items()})

    @contextmanager
    def measure(self, key: str) -> Iterator[None]:
        """Add the block's seconds to a metric, also when it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add_metric(key, time.monotonic() - start)

    def activate(self) -> Token[MetricsBuilder]:
        """Make this the builder of the running code; ``token.var.reset(token)`` takes it back."""
        return _active.set(self)

    @contextmanager
    def activate_context(self) -> Iterator[Self]:
        """Make this the builder of the block."""
        token = self.activate()
        try:
            yield self
        finally:
            _active.reset(token)

    @staticmethod
    def get_active() -> MetricsBuilder:
        """The builder of the running code.

        Raises:
            LookupError: There is none.
        """
        return _active.get()

    def for_cost_context(self, cost_context: str) -> MetricsBuilder:
        """A builder of the same model for another context."""
        return MetricsBuilder(cost_context, self._pending)

    def _add(self, values: Mapping[str, float | None]) -> None:
        for key, value in values.items():
            if value is not None:
                self.add_metric(key, value)


def context_of(split: str) -> str:
    """The cost context whose metrics a split's line takes."""
    return "eval" if split in ("val", "test") else split


def charge(calculator: CostCalculator, completion: ChatCompletion) -> None:
    """Add a completion's cost to the active builder; nothing where none is active.

    Args:
        calculator: The model's.
        completion: As answered; its usage counts the prompt once, however many choices it has.
    """
    builder = _active.get(None)
    if builder is None:
        return
    usage = completion.usage
    prompt = (usage.prompt_tokens if usage else 0) * max(1, len(completion.choices))
    costs = calculator(prompt, usage.completion_tokens if usage else 0, builder.cost_context)
    for key, usd in costs.items():
        if key.startswith("costs/"):
            builder.add_metric(key, usd)


def no_cost(prompt_tokens: int | None, completion_tokens: int | None, cost_context: str) -> dict[str, Any]:
    """The calculator of a model without one."""
    return {}
