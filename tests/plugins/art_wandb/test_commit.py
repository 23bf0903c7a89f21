"""What a commit to W&B relies on: which versions belong together, how often it asks, what a loser leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from art_wandb.name import artifact_name, optimizer_name
from art_wandb.options import WandbPublisherOptions, WandbStoreOptions
from art_wandb.publisher import WandbPublisher
from art_wandb.store import WandbStore

from art_core.capability import Capabilities
from art_core.checkpoint import OPTIMIZER, Checkpoint, verify
from art_core.errors import CommitConflictError, StoreError
from art_core.local_store import LocalStore
from art_core.run_key import RunKey
from tests.servers.wandb import WandbServer
from tests.staged import stage_step


@pytest.fixture
def run(tmp_path: Path) -> RunKey:
    """A run of the test's own."""
    return RunKey("commit", tmp_path.name)


@pytest.fixture
def store(server: WandbServer) -> WandbStore:
    return WandbStore(WandbStoreOptions())


def fail_after(server: WandbServer, commits: int) -> None:
    """Only so many versions can be made from now on."""
    left = commits

    def refuse(method: str, asked: str) -> int | None:
        nonlocal left
        left -= "CommitArtifact" in asked
        return 400 if "CommitArtifact" in asked and left < 0 else None

    server.fault = refuse


@pytest.mark.parametrize("swept", [False, True])
async def test_the_state_that_a_lost_machine_left_is_not_taken_for_another_s(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, swept: bool
) -> None:
    """It was lost between a step's optimizer state and its adapter; the next one makes another step of that number."""
    lost = stage_step(tmp_path / "lost" / run.run, 1, 1)
    made = stage_step(tmp_path / "made" / run.run, 1, 2)
    assert lost.manifest.files[OPTIMIZER].size_bytes == made.manifest.files[OPTIMIZER].size_bytes
    fail_after(server, 1)
    with pytest.raises(StoreError):
        await store.commit(run, lost)
    server.fault = None
    assert len(server.record.versions(run.project, optimizer_name(run.run))) == 1
    await store.commit(run, made)
    if swept:
        assert await store.sweep(run, 0.0) == 1
    assert [entry.manifest for entry in await store.list(run)] == [made.manifest]
    fetched = await store.fetch(run, 1, tmp_path / "fetched")
    assert verify(fetched.directory) == made.manifest and (fetched.directory / OPTIMIZER).exists()
    assert await store.drop_optimizer(run, [1]) == [1]
    assert server.record.versions(run.project, optimizer_name(run.run)) == []


async def test_a_commit_asks_for_few_listings(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    """Adapters and states before, adapters again after: that is what tells who was first."""

    async def listings(step: int) -> int:
        checkpoint = stage_step(tmp_path / run.run, step)
        asked = len(server.asked)
        await store.commit(run, checkpoint)
        return sum("ProjectArtifacts" in each for each in server.asked[asked:])

    assert [await listings(step) for step in (1, 2, 2)] == [3, 3, 2]


async def test_the_alias_stays_with_the_version_that_counts(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    """A committer that comes second has made its version before it knows."""
    first, second = (stage_step(tmp_path / name / run.run, 1, seed) for seed, name in enumerate(("first", "second")))
    await store.commit(run, first)
    with pytest.raises(CommitConflictError):
        await store.add_adapter(run, second, dropped=False)
    (version,) = server.record.versions(run.project, artifact_name(run.run))
    assert version.version == 0 and "step1" in version.aliases
    assert (await store.fetch(run, 1, tmp_path / "fetched")).manifest == first.manifest


async def test_a_publication_gives_the_step_its_alias_back(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    path = tmp_path / run.project / "models" / run.run
    stored = await LocalStore().commit(path, stage_step(path, 1))
    await store.commit(run, Checkpoint(stored.directory, stored.manifest))
    publisher = WandbPublisher(WandbPublisherOptions(), None, Capabilities())
    await publisher.publish("it@1", stored)
    (version,) = server.record.versions(run.project, artifact_name(run.run))
    version.aliases.discard("step1")
    policy = await publisher.publish("it@1", stored)
    assert policy.name.endswith(":step1") and "step1" in version.aliases
    assert json.loads(version.metadata)["art.deployed"] is True


@pytest.mark.heavy
async def test_of_a_deleted_step_no_version_that_was_beaten_comes_to_count(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    """Cut short at its first deletion, `delete` leaves the step as it was."""
    await store.commit(run, stage_step(tmp_path / "first" / run.run, 1, 1))
    beaten = stage_step(tmp_path / "second" / run.run, 1, 2)
    server.fault = lambda method, asked: 400 if "DeleteArtifact" in asked else None
    with pytest.raises(StoreError):
        await store.add_adapter(run, beaten, dropped=False)
    deletions = 0

    def once(method: str, asked: str) -> int | None:
        nonlocal deletions
        deletions += "DeleteArtifact" in asked
        return 400 if "DeleteArtifact" in asked and deletions > 1 else None

    before = [entry.manifest for entry in await store.list(run)]
    server.fault = once
    with pytest.raises(StoreError):
        await store.delete(run, [1], [])
    server.fault = None
    assert deletions == 2 and [entry.manifest for entry in await store.list(run)] == before
    assert await store.delete(run, [1], []) == [1]
    assert await store.list(run) == []


@pytest.mark.heavy
async def test_a_run_that_was_deleted_in_wandb_is_told_so(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    """In the server's words, as users of W&B report them."""
    text = f"run team/{run.project}/{run.run} was previously created and deleted; try a new run name"
    server.words = text
    server.fault = lambda method, asked: 409 if "UpsertBucket" in asked else None
    with pytest.raises(StoreError, match=r"was deleted in W&B, .*train under another run name") as caught:
        await store.commit(run, stage_step(tmp_path / run.run, 1))
    assert not caught.value.retryable
