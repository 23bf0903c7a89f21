"""The torch engine keeps every promise of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from art_torch.options import TorchEngineOptions

from art_core.part import EnginePart
from art_core.plugins import load_part
from art_core.testing import EngineConformance


class TestTorchEngine(EngineConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> EnginePart:
        return cast(EnginePart, load_part("engine", "torch"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> TorchEngineOptions:
        return TorchEngineOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model
