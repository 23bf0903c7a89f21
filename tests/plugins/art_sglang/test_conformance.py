"""The real SGLang keeps every promise of an engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pytest
from art_sglang.options import SglangOptions

from art_core.part import EnginePart
from art_core.plugins import load_part
from art_core.testing import EngineConformance
from art_core.testing.engine.bench import EngineBench, alike

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

    async def test_files_that_are_deleted_after_a_load_are_not_missed(self, bench: EngineBench) -> None:
        """SGLang is shown a link to them; it must not follow that again, whatever else comes and goes."""
        stored = await bench.load("kept@1", 1)
        before = await bench.fingerprint("kept@1")
        shutil.rmtree(stored.directory)
        for turn in range(2):
            others = [f"other@{turn}{number}" for number in range(bench.endpoint.max_adapters - 1)]
            for seed, name in enumerate(others, 2):
                await bench.load(name, seed)
                await bench.fingerprint(name)
            await bench.unload(*others)
        assert alike(bench, await bench.fingerprint("kept@1"), before)
