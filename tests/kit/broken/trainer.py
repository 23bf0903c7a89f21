"""The torch trainer, but a batch with nothing to learn makes an optimizer step: momentum and decay move the weights.

The kit's tests of bad specs and of the end are left out: they start another process and say nothing of this fault.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art_torch.options import TorchTrainerOptions

from art_core.batch import TrainBatch
from art_core.capability import FULL, Capabilities, Capability
from art_core.part import TrainerPart
from art_core.protocols.trainer import Trainer
from art_core.step import StepConfig, StepResult
from art_core.testing import TrainerStates, TrainerSteps


def make(options: Mapping[str, Any]) -> Trainer:
    """The trainer, in the worker process."""
    from art_torch.trainer import TorchTrainer

    class RestlessTrainer(TorchTrainer):
        async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
            if batch.usable:
                return await super().step(batch, config)
            tiny_BT = np.where(batch.loss_mask_BT, np.float32(1e-20), np.float32(0))
            result = await super().step(replace(batch, advantages_BT=tiny_BT), config)
            return replace(result, updated=False)

    return RestlessTrainer(TorchTrainerOptions(**options))


class TestRestlessTrainer(TrainerStates, TrainerSteps):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        capabilities = Capabilities({Capability.OPTIMIZER_STATE: FULL})
        return TrainerPart(name="torch", options=TorchTrainerOptions, capabilities=capabilities, create=make)

    @pytest.fixture(scope="class")
    @classmethod
    def factory(cls) -> str:
        return "tests.kit.broken.trainer:make"

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> TorchTrainerOptions:
        return TorchTrainerOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls) -> Path:
        return Path(os.environ["KIT_BASE_MODEL"])
