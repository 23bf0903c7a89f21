"""The torch trainer, but taking its device again it forgets what the optimizer had gathered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from art_torch.options import TorchTrainerOptions

from art_core.capability import FULL, Capabilities, Capability
from art_core.part import TrainerPart
from art_core.protocols.trainer import Trainer
from art_core.testing import TrainerHandovers, TrainerSteps


def make(options: Mapping[str, Any]) -> Trainer:
    """The trainer, in the worker process."""
    from art_torch.trainer import TorchTrainer

    class ForgetfulTrainer(TorchTrainer):
        async def onload(self) -> None:
            await super().onload()
            learner = self._started()
            learner._optimizer.reset()

    return ForgetfulTrainer(TorchTrainerOptions(**options))


class TestForgetfulTrainer(TrainerHandovers, TrainerSteps):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        capabilities = Capabilities({Capability.OFFLOAD: FULL})
        return TrainerPart(name="torch", options=TorchTrainerOptions, capabilities=capabilities, create=make)

    @pytest.fixture(scope="class")
    @classmethod
    def factory(cls) -> str:
        return "tests.kit.broken.handover:make"

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> TorchTrainerOptions:
        return TorchTrainerOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls) -> Path:
        return Path(os.environ["KIT_BASE_MODEL"])
