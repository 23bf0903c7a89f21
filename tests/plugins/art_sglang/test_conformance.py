"""The real SGLang keeps every promise of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from art_sglang.options import SglangOptions

from art_core.part import EnginePart
from art_core.plugins import load_part
from art_core.testing import EngineConformance

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


class TestSglangEngine(EngineConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> EnginePart:
        return cast(EnginePart, load_part("engine", "sglang"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, sglang_options: SglangOptions) -> SglangOptions:
        return sglang_options

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model
