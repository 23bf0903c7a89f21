"""Parts of the caller's own, on the real line: an engine, a store, a publisher factory, a trainer by its callable."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions

import art
from art.local import LocalBackend
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.errors import ConfigError
from art_core.file_store import FileStore
from tests.flow.agent import by_length, gather


class OwnEngine(TorchEngine):
    """The torch engine as an object that says itself what it can do."""

    capabilities = Capabilities({Capability.WEIGHT_PROOF: FULL, Capability.SCORE: FULL})


async def test_a_line_of_the_callers_own_parts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    engine, made = OwnEngine(TorchEngineOptions(max_loras=2)), []

    def publisher(*given: object) -> ReloadPublisher:
        made.append(given)
        return ReloadPublisher(ReloadOptions(require_proof=True), engine, OwnEngine.capabilities)

    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_model), _internal_config={"trainer_args": {"cpu_threads": 1}}
    )
    parts = {"engine": engine, "store": FileStore(tmp_path / "copies"), "durable": "remote", "publisher": publisher}
    async with LocalBackend(path=tmp_path, trainer="tests.own_trainer:make", **parts) as backend:
        await model.register(backend)
        result = await backend.train(model, await gather(model, by_length), learning_rate=1e-3)
        assert (result.step, result.metrics["publish/proved"]) == (1, 1.0)
        assert result.metrics["own/cpu_threads"] == 1.0
        second = art.TrainableModel(name="n", project="p", base_model=str(tiny_model))
        with pytest.raises(ConfigError, match="engine object given to this LocalBackend serves a model already"):
            await second.register(backend)
    assert made == [(engine, OwnEngine.capabilities)]
