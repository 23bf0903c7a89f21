"""A real run with W&B on every side: steps in its store, deployed for its inference, told to its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER, OPTIMIZER, verify
from tests.flow.agent import by_length, gather
from tests.servers.wandb import WandbServer


async def test_a_run_with_wandb_on_every_side(server: WandbServer, tmp_path: Path, tiny_model: Path) -> None:
    async def train(path: Path, steps: int) -> list[int]:
        model = art.TrainableModel(
            name="every", project="sides", base_model=str(tiny_model), report_metrics=["wandb"], entity="team"
        )
        parts = {"engine": "torch", "trainer": "torch", "store": "wandb", "publisher": ["reload", "wandb"]}
        async with LocalBackend(path=path, durable="remote", **parts) as backend:
            await model.register(backend)
            seen = [await model.get_step()]
            groups = await gather(model, by_length)
            for _ in range(steps):
                result = await backend.train(model, groups, learning_rate=1e-4)
                await model.log(groups, split="train", metrics=result.metrics, step=result.step)
                publication = result.publications["wandb"]
                assert (publication.error, result.metrics["publish/to_wandb"]) == (None, 1.0)
                assert publication.policy is not None
                assert publication.policy.name == f"wandb-artifact:///team/sides/every:step{result.step}"
                assert publication.policy.base_url == "https://api.inference.wandb.ai/v1"
                seen.append(result.step)
        return seen

    assert await train(tmp_path / "one", 2) == [0, 1, 2]
    last = tmp_path / "one/sides/models/every/checkpoints/0002"
    manifest, adapter = verify(last), (last / ADAPTER).read_bytes()
    shutil.rmtree(tmp_path / "one")
    assert await train(tmp_path / "two", 1) == [2, 3], "a lost machine goes on with one argument"
    assert verify(tmp_path / "two/sides/models/every/checkpoints/0002") == manifest
    assert (tmp_path / "two/sides/models/every/checkpoints/0002" / OPTIMIZER).exists()

    versions = {version.version: version for version in server.record.versions("sides", "every")}
    assert len(versions) == 4, "store and publisher share a step's version"
    assert versions[2].files[ADAPTER] == adapter
    assert versions[3].aliases == {"step3", "latest"}
    metadata = [json.loads(version.metadata) for _, version in sorted(versions.items())]
    assert [each["art.deployed"] for each in metadata] == [True] * 4
    assert [bool(each["art.dropped"]) for each in metadata] == [True] * 2 + [False] * 2
    assert [name for project, name in server.record.runs if project == "sides"] == ["every"]
    history = server.record.runs["sides", "every"].history
    assert [line["training_step"] for line in history] == [1, 2, 3]
    assert all(line["publish/to_wandb"] == 1.0 for line in history)
