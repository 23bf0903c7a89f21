"""The torch trainer keeps every promise of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from art_torch.options import TorchTrainerOptions

from art_core.part import TrainerPart
from art_core.plugins import load_part
from art_core.testing import TrainerConformance


class TestTorchTrainer(TrainerConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        return cast(TrainerPart, load_part("trainer", "torch"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> TorchTrainerOptions:
        return TorchTrainerOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model
