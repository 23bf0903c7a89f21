"""A real run with its steps in a bucket: a machine is lost, another one goes on with one argument."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.checkpoint import OPTIMIZER, verify
from art_core.run_key import RunKey
from tests.flow.agent import by_length, gather
from tests.plugins.art_s3.place import Place


async def test_a_lost_machine_goes_on_from_the_bucket(
    place: Place, server: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    url, key = f"s3://{place.bucket}/some/prefix", RunKey("p", "m")

    async def train(path: Path, steps: int, durable: str) -> list[int]:
        model = art.TrainableModel(name="m", project="p", base_model=str(tiny_model))
        async with LocalBackend(path=path, store=url, durable=durable, engine="torch", trainer="torch") as backend:
            await model.register(backend)
            seen = [await model.get_step()]
            groups = await gather(model, by_length)
            for _ in range(steps):
                result = await backend.train(model, groups, learning_rate=1e-4)
                assert result.metrics["publish/proved"] == 1.0
                assert result.metrics["store/lag_steps"] == 0.0 or durable == "local"
                if durable == "remote":
                    assert (await place.store().list(key))[-1].step == result.step
                seen.append(result.step)
        return seen

    assert await train(tmp_path / "one", 3, "remote") == [0, 1, 2, 3]
    last = verify(tmp_path / "one/p/models/m/checkpoints/0003")
    shutil.rmtree(tmp_path / "one")
    assert await train(tmp_path / "two", 1, "local") == [3, 4]
    assert verify(tmp_path / "two/p/models/m/checkpoints/0003").files == last.files
    entries = await place.store().list(key)
    assert [entry.step for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.step for entry in entries if not entry.dropped] == [3, 4]
    assert (tmp_path / "two/p/models/m/checkpoints/0003" / OPTIMIZER).exists()
