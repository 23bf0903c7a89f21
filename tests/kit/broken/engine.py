"""The torch engine, but `load_adapter` under a name in use replaces what serves there instead of refusing.

The kit's tests of start and stop are left out: they start three more processes and say nothing of this fault.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions

from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.part import EnginePart
from art_core.protocols.engine import LoadedAdapter
from art_core.testing import EngineAdapters, EngineAnswers, EngineProofs


class ReplacingEngine(TorchEngine):
    """Unloads whatever has the name, then loads."""

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        await self.unload_adapter(name)
        return await super().load_adapter(name, checkpoint)


class TestReplacingEngine(EngineProofs, EngineAdapters, EngineAnswers):
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> EnginePart:
        declared = (Capability.WEIGHT_PROOF, Capability.SCORE, Capability.STREAM_TOKEN_IDS)
        capabilities = Capabilities(dict.fromkeys(declared, FULL))
        return EnginePart(name="torch", options=TorchEngineOptions, capabilities=capabilities, create=ReplacingEngine)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> TorchEngineOptions:
        return TorchEngineOptions(device="cpu", cpu_threads=1)

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls) -> Path:
        return Path(os.environ["KIT_BASE_MODEL"])
