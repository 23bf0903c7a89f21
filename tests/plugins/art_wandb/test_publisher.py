"""The publisher for W&B Inference: what it says, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from art_wandb.options import WandbPublisherOptions, WandbStoreOptions
from art_wandb.publisher import WandbPublisher
from art_wandb.store import WandbStore

from art_core.capability import Capabilities
from art_core.checkpoint import ADAPTER, Checkpoint, StoredCheckpoint
from art_core.errors import CheckpointCorruptError, PublishError
from art_core.local_store import LocalStore
from art_core.policy import ProofKind
from art_core.run_key import RunKey
from tests.servers.wandb import WandbServer
from tests.staged import stage_step


async def stored(root: Path, run: str, step: int, seed: int | None = None) -> StoredCheckpoint:
    """A step in its place below a root."""
    path = root / "deployed" / "models" / run
    return await LocalStore().commit(path, stage_step(path, step, seed))


def publisher(**options: Any) -> WandbPublisher:
    return WandbPublisher(WandbPublisherOptions(**options), None, Capabilities())


async def test_a_step_is_deployed_under_its_alias(server: WandbServer, tmp_path: Path) -> None:
    step = await stored(tmp_path, "first", 7)
    made = publisher(base_model="OpenPipe/Qwen3-14B-Instruct")
    for _ in range(2):  # as at the next start
        policy = await made.publish("first@7", step)
        assert policy.name == "wandb-artifact:///team/deployed/first:step7"
        assert (policy.base_url, policy.proof.kind) == ("https://api.inference.wandb.ai/v1", ProofKind.NONE)
    (version,) = server.record.versions("deployed", "first")
    assert json.loads(version.metadata)["wandb.base_model"] == "OpenPipe/Qwen3-14B-Instruct"
    assert json.loads(version.metadata)["art.deployed"] is True
    assert version.files[ADAPTER] == (step.directory / ADAPTER).read_bytes()
    for _ in range(2):
        await made.retract(policy)
    assert json.loads(version.metadata)["art.deployed"] is False
    assert version.aliases == {"step7", "latest"}


async def test_the_store_completes_what_was_deployed(server: WandbServer, tmp_path: Path) -> None:
    """A deployed adapter is no whole checkpoint: the optimizer's state is the store's to bring."""
    step, store, run = (
        await stored(tmp_path, "second", 1),
        WandbStore(WandbStoreOptions()),
        RunKey("deployed", "second"),
    )
    await publisher().publish("second@1", step)
    assert not await store.list(run)
    await store.commit(run, Checkpoint(step.directory, step.manifest))
    assert [(entry.step, entry.dropped) for entry in await store.list(run)] == [(1, frozenset())]
    assert len(server.record.versions("deployed", "second")) == 1


async def test_what_can_not_be_deployed_is_an_error_of_the_publication(server: WandbServer, tmp_path: Path) -> None:
    step = await stored(tmp_path, "third", 1)
    server.fault = lambda method, asked: 403 if "CommitArtifact" in asked else None
    with pytest.raises(PublishError, match=r"step 1 could not be brought to W&B Inference: .*403"):
        await publisher().publish("third@1", step)
    server.fault = None
    await publisher().publish("third@1", step)
    with pytest.raises(PublishError, match="another checkpoint stands at step 1"):
        await publisher().publish("third@1", await stored(tmp_path / "other", "third", 1, seed=9))
    with (step.directory / ADAPTER).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await publisher().publish("third@1", step)
