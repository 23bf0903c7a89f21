"""A trainer that no plugin registers, as somebody would write it over an existing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from art_torch.options import TorchTrainerOptions
from art_torch.trainer import TorchTrainer

from art_core.batch import TrainBatch
from art_core.step import StepConfig, StepResult


class OwnTrainer(TorchTrainer):
    """The torch trainer with one metric more."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(TorchTrainerOptions.parse(dict(options)))
        self._threads = options["cpu_threads"]

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """See `TorchTrainer.step`."""
        result = await super().step(batch, config)
        return replace(result, metrics={**result.metrics, "own/cpu_threads": float(self._threads)})


def make(options: Mapping[str, Any]) -> OwnTrainer:
    """What the worker calls."""
    return OwnTrainer(options)
