"""The vLLM engine keeps every promise of an engine, on the real server."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from art_vllm.options import VllmOptions

from art_core.part import EnginePart
from art_core.plugins import load_part
from art_core.testing import EngineConformance


@pytest.mark.heavy
@pytest.mark.timeout(600)
class TestVllmEngine(EngineConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> EnginePart:
        return cast(EnginePart, load_part("engine", "vllm"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, vllm_options: VllmOptions) -> VllmOptions:
        return vllm_options

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, vllm_model: Path) -> Path:
        return vllm_model
