"""The Unsloth trainer keeps every promise of a trainer, on Unsloth's own CPU backend."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from art_unsloth.options import UnslothTrainerOptions

from art_core.part import TrainerPart
from art_core.plugins import load_part
from art_core.testing import TrainerConformance


@pytest.mark.heavy
@pytest.mark.timeout(900)
class TestUnslothTrainer(TrainerConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        return cast(TrainerPart, load_part("trainer", "unsloth"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> UnslothTrainerOptions:
        return UnslothTrainerOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model
