"""Buckets as users of the reference client name them: pushed to, pulled from, forked from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from art_s3.options import S3StoreOptions

import art
from art.local import LocalBackend
from art_core.checkpoint import OPTIMIZER, verify
from art_core.config import LoRAConfig
from art_core.errors import CheckpointNotFoundError, ConfigError
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.run_key import RunKey
from tests.plugins.art_s3.place import Place
from tests.staged import stage_step


def model(name: str) -> art.TrainableModel:
    return art.TrainableModel(name=name, project="p", base_model="tiny")


async def test_push_pull_and_fork(place: Place, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create_or_open(tmp_path / "one", "p", "m", "tiny", LoRAConfig())
    for step in (0, 1, 2):
        await LocalStore().commit(run.path, stage_step(run.path, step))
    run.close()
    named = {"s3_bucket": place.bucket, "prefix": "some/prefix"}
    one = LocalBackend(path=tmp_path / "one", store=S3StoreOptions(bucket="another", endpoint_url=server))
    await one._experimental_push_to_s3(model("m"), **named, verbose=True)
    key = RunKey("p", "m")
    assert [entry.step for entry in await place.store().list(key)] == [0, 1, 2]

    await LocalStore().delete(run.path, [0, 1], [2])
    await one._experimental_push_to_s3(model("m"), **named)
    assert len(await place.store().list(key)) == 3
    await one._experimental_push_to_s3(model("m"), **named, delete=True)
    assert [entry.step for entry in await place.store().list(key)] == [2]

    monkeypatch.setenv(
        "AWS_ENDPOINT_URL_S3", server
    )  # a backend without a store of its own finds one that takes a bucket
    two = LocalBackend(path=tmp_path / "two")
    pulled = Path(await two._experimental_pull_model_checkpoint(model("m"), **named))
    assert pulled == tmp_path / "two/p/models/m/checkpoints/0002"
    assert verify(pulled).step == 2 and (pulled / OPTIMIZER).exists()
    copy = await two._experimental_pull_model_checkpoint(model("m"), step=2, local_path=tmp_path / "copy", **named)
    assert verify(Path(copy)).step == 2
    with pytest.raises(CheckpointNotFoundError, match="has no step 1 of run p/m; its steps: 2"):
        await two._experimental_pull_model_checkpoint(model("m"), step=1, **named)

    bucket = {"from_s3_bucket": place.bucket, "prefix": "some/prefix"}
    await two._experimental_fork_checkpoint(model("n"), "m", **bucket)
    forked = verify(tmp_path / "two/p/models/n/checkpoints/0002")
    assert (forked.run, forked.origin) == ("n", "p/m@2")
    other = art.TrainableModel(name="o", project="p", base_model="tiny", lora_config={"rank": 4})
    with pytest.raises(ConfigError, match="LoRA rank 8, this model has 4"):
        await two._experimental_fork_checkpoint(other, "m", **bucket)
    with pytest.raises(CheckpointNotFoundError, match="has no step up to 1 of run"):
        await two._experimental_fork_checkpoint(model("q"), "m", not_after_step=1, **bucket)


async def test_a_run_is_pulled_as_programs_used_to(place: Place, tmp_path: Path, server: str) -> None:
    run = RunDirectory.create_or_open(tmp_path / "one", "p", "m", "tiny", LoRAConfig())
    for step in (0, 1, 2):
        await LocalStore().commit(run.path, stage_step(run.path, step))
    run.close()
    store = S3StoreOptions(bucket=place.bucket, endpoint_url=server)
    await LocalBackend(path=tmp_path / "one", store=store)._experimental_push_to_s3(model("m"))
    path = tmp_path / "two/p/models/m"

    async def pull(**options: Any) -> list[int]:
        with pytest.warns(DeprecationWarning, match="call _experimental_pull_model_checkpoint"):
            await LocalBackend(path=tmp_path / "two", store=store)._experimental_pull_from_s3(model("m"), **options)
        return [each.step for each in await LocalStore().list(path)]

    assert await pull(exclude=["checkpoints"]) == []
    assert await pull(step=0, verbose=True) == [0]
    assert await pull(latest_only=True, exclude=["logs"]) == [0, 2]
    assert await pull(s3_bucket=place.bucket) == [0, 1, 2]
    await place.store(prefix="").delete(RunKey("p", "m"), [1], [])
    assert await pull() == [0, 1, 2]
    assert await pull(delete=True) == [0, 2]
    with pytest.raises(CheckpointNotFoundError, match="has no step 1 of run p/m; its steps: 0, 2"):
        await pull(only_step=1)
    with pytest.raises(ConfigError, match="name \\['1', 'latest'\\]; allowed: one step, or none"):
        await pull(only_step=1, latest_only=True)
    with pytest.raises(ConfigError, match="there is no store to copy to or from"), pytest.warns(DeprecationWarning):
        await LocalBackend(path=tmp_path)._experimental_pull_from_s3(model("m"))


async def test_without_a_store_there_is_nothing_to_push_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no store to copy to or from; give s3_bucket"):
        await LocalBackend(path=tmp_path)._experimental_push_to_s3(model("m"))
    with pytest.raises(ConfigError, match="'s3_buckett'"):
        await LocalBackend(path=tmp_path)._experimental_push_to_s3(model("m"), s3_buckett="x")  # type: ignore[call-arg]
