"""The W&B store: names, errors by their kinds, hostile contents, several committers, kills of the SDK's process."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from art_wandb.name import artifact_name, optimizer_name, project_name
from art_wandb.options import WandbStoreOptions
from art_wandb.process import WANDB
from art_wandb.store import WandbStore
from art_wandb.version import lora_metadata, state_metadata

from art_core.checkpoint import ADAPTER, OPTIMIZER, Checkpoint, manifest_bytes, verify
from art_core.errors import (
    CheckpointCorruptError,
    CommitConflictError,
    StoreError,
    StoreUnavailableError,
)
from art_core.protocols.store import StoreEntry
from art_core.run_key import RunKey
from tests.servers.wandb import WandbServer
from tests.staged import stage_step

MANY, PAGE = 2_000, 200
"""Steps in a long run, and how many the SDK is asked for at a time."""


def staged(tmp_path: Path, run: RunKey, step: int, seed: int | None = None) -> Checkpoint:
    return stage_step(tmp_path / "here" / run.run, step, seed)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> RunKey:
    """A run of the test's own."""
    return RunKey("store", f"run-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}")


@pytest.fixture
def store(server: WandbServer) -> WandbStore:
    return WandbStore(WandbStoreOptions())


def test_plain_names_stay_and_others_are_told_apart() -> None:
    assert (artifact_name("agent-1.x_y"), project_name("projekt ß = 1")) == ("agent-1.x_y", "projekt ß = 1")
    odd = ["läufer", "laufer!", "a/b", "a b", "x" * 200, "日本", "", "100%"]
    names, projects = [*map(artifact_name, odd), *map(optimizer_name, odd)], [*map(project_name, ["a#b", "a/b", " a"])]
    assert (len(set(names)), len(set(projects))) == (len(names), 3)
    assert all(len(name) <= 128 and name.replace("-", "").replace("_", "").isalnum() for name in names + projects)


async def test_what_programs_of_the_reference_client_look_for(
    server: WandbServer, store: WandbStore, tmp_path: Path
) -> None:
    run = RunKey("capitals", "brief")
    for step in (0, 7):
        await store.commit(run, staged(tmp_path, run, step))
    newest, first = server.record.versions("capitals", "brief")
    assert (newest.type, newest.aliases, first.aliases) == ("lora", {"step7", "latest"}, {"step0"})
    metadata = json.loads(newest.metadata)
    assert metadata["wandb.base_model"] == staged(tmp_path, run, 7).manifest.base_model.name
    assert metadata["wandb.provenance"] == ["local-rl"]
    assert {ADAPTER, "adapter_config.json"} <= newest.files.keys()
    assert "optimizer.safetensors" not in newest.files
    assert newest.run == "brief"


@pytest.mark.parametrize(
    ("where", "status", "error"),
    [
        ("ProjectArtifacts", 429, StoreUnavailableError),
        ("ProjectArtifacts", 403, StoreError),
        ("/storage/", 503, StoreUnavailableError),
        ("CommitArtifact", 500, StoreUnavailableError),
        ("CommitArtifact", 403, StoreError),
    ],
)
async def test_a_server_that_fails(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, where: str, status: int, error: type[Exception]
) -> None:
    checkpoint = staged(tmp_path, run, 1)
    server.fault = lambda method, asked: status if where in asked else None
    with pytest.raises(error) as caught:
        await store.commit(run, checkpoint)
    assert type(caught.value) is error, caught.value
    server.fault = None
    assert not await store.list(run), "what failed is not listed"
    await store.commit(run, checkpoint)
    assert [entry.step for entry in await store.list(run)] == [1]


async def test_a_server_that_fails_never_says_that_there_is_nothing(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    await store.commit(run, staged(tmp_path, run, 1))
    server.fault = lambda method, asked: 500 if "query" in asked else None
    with pytest.raises(StoreUnavailableError):
        await store.list(run)


async def test_a_call_that_takes_too_long_is_given_up(
    server: WandbServer, run: RunKey, store: WandbStore, tmp_path: Path
) -> None:
    await store.commit(run, staged(tmp_path, run, 1))
    server.fault = lambda method, asked: 5.0 if "ProjectArtifacts" in asked else None
    hasty = WandbStore(WandbStoreOptions(timeout_s=0.5))
    hasty._client._entity = await store._client.entity()  # asked for with time enough
    with pytest.raises(StoreUnavailableError, match=r"did not versions within 0\.5 s"):
        await hasty.list(run)
    server.fault = None
    assert [entry.step for entry in await store.list(run)] == [1], "the next call finds a new process"


async def test_eight_committers_at_once(server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path) -> None:
    """Beyond what is declared: as the server numbers versions, the oldest of a step counts."""
    checkpoints = [stage_step(tmp_path / str(n) / run.run, 1, n) for n in range(8)]
    stores = [WandbStore(WandbStoreOptions()) for _ in checkpoints]
    calls = [each.commit(run, one) for each, one in zip(stores, checkpoints, strict=True)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [each for each in outcomes if isinstance(each, StoreEntry)]
    assert len(won) == 1
    assert sum(isinstance(each, CommitConflictError) for each in outcomes) == 7, outcomes
    assert (await store.fetch(run, 1, tmp_path / "fetched")).manifest == won[0].manifest
    assert len(server.record.versions(run.project, run.run)) == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/hostile", "adapter_model.safetensors/x"])
async def test_a_hostile_file_is_never_read(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, name: str
) -> None:
    """Files of a version that its manifest does not name: the step is not whole, and nothing is written for them."""
    await store.commit(run, staged(tmp_path, run, 1))
    server.record.versions(run.project, artifact_name(run.run))[0].files[name] = b"hostile"
    assert not await store.list(run)
    fetched = await store.fetch(run, 1, tmp_path / "a" / "fetched")
    assert verify(fetched.directory) == fetched.manifest
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["fetched"]


async def test_a_huge_file_is_not_read_to_its_end(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    await store.commit(run, staged(tmp_path, run, 1))
    server.record.versions(run.project, artifact_name(run.run))[0].files[ADAPTER] += bytes(64 << 20)
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        await store.fetch(run, 1, tmp_path / "fetched")
    assert (tmp_path / "fetched" / ADAPTER).stat().st_size < 8 << 20


async def test_versions_of_others_are_passed_over(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    await store.commit(run, staged(tmp_path, run, 1))
    await store.commit(run, staged(tmp_path, run, 2))
    newest = server.record.versions(run.project, artifact_name(run.run))[0]
    for metadata in ({}, {"art.step": "2"}, {"art.run": run.run, "art.project": "another", "art.step": 2}):
        newest.metadata = json.dumps(metadata)
        assert [entry.step for entry in await store.list(run)] == [1]


def kill_sdk() -> None:
    """kill -9 of the SDK's process and its service, as they die with their owner."""
    connection = WANDB._connection
    assert connection is not None
    os.killpg(connection._child.pid, signal.SIGKILL)


async def kills(server: WandbServer, work: Callable[[], Any], points: list[int], late: bool) -> int:
    """Do something again and again, killed at the first, second, … request that changes something; how often."""
    changes = itertools.count(1)  # files go up side by side: none may be passed over

    def strike(method: str, asked: str) -> None:
        changing = (asked.startswith("mutation") and "UpsertBucket" not in asked) or method == "PUT"
        if changing and next(changes) == points[0]:
            kill_sdk()

    if late:
        server.done = strike
    else:
        server.fault = strike
    try:
        await work()
    except StoreUnavailableError:
        return 1
    finally:
        server.done = server.fault = None
    return 0


@pytest.mark.parametrize(
    ("points", "late"),
    [
        ([2, 8], True),
        pytest.param([*range(1, 40)], True, marks=pytest.mark.heavy),
        pytest.param([*range(1, 40)], False, marks=pytest.mark.heavy),
    ],
)
async def test_the_process_is_killed_at_every_change(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, points: list[int], late: bool
) -> None:
    await store.commit(run, staged(tmp_path, run, 0))
    struck = 0
    for point in points:
        checkpoint = staged(tmp_path, run, point)
        killed = await kills(server, lambda checkpoint=checkpoint: store.commit(run, checkpoint), [point], late)
        struck += killed
        entries = await store.list(run)
        for entry in entries[-1:]:
            fetched = await store.fetch(run, entry.step, tmp_path / f"fetched {point}")
            assert verify(fetched.directory, entry.manifest) == entry.manifest
        assert entries[0].step == 0
        await store.commit(run, checkpoint)
        assert [entry.step for entry in await store.list(run)][-1] == point
        if not killed:
            break
    print(f"{struck} kills of commit")
    assert struck >= 2
    await store.sweep(run, 0.0)
    steps = [entry.step for entry in await store.list(run)]
    assert len(server.record.versions(run.project, artifact_name(run.run))) == len(steps)
    assert len(server.record.versions(run.project, optimizer_name(run.run))) == len(steps)


async def remove(store: WandbStore, run: RunKey, work: str, step: int) -> None:
    match work:
        case "delete":
            await store.delete(run, [step], [step + 1])
        case "drop":
            await store.drop_optimizer(run, [step])
        case "sweep":
            await store.sweep(run, 0.0)


@pytest.mark.heavy
@pytest.mark.parametrize("work", ["delete", "drop", "sweep"])
async def test_the_process_is_killed_at_every_removal(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, work: str
) -> None:
    """What was not to go stays whole, whatever instant it was; made again, the call ends as it would have."""
    kept, dropped, struck = list[int](), list[int](), 0
    for point in itertools.count(1):
        step = 10 * point
        for number in (step, step + 1):
            await store.commit(run, staged(tmp_path, run, number))
        if work == "sweep":  # commits that were cut short: states without their adapters
            for version in server.record.versions(run.project, artifact_name(run.run))[:2]:
                server.record.delete(version)
        killed = await kills(server, lambda step=step: remove(store, run, work, step), [point], True)
        struck += killed
        entries = {entry.step: entry for entry in await store.list(run)}
        kept += [step + 1] if work == "delete" else [step, step + 1] if work == "drop" else []
        assert {*kept} <= entries.keys() <= {*kept, step}
        for number in {step, step + 1} & entries.keys():
            fetched = await store.fetch(run, number, tmp_path / f"fetched {number}")
            assert verify(fetched.directory, entries[number].manifest) == entries[number].manifest
        await remove(store, run, work, step)
        dropped += [step] if work == "drop" else []
        listed = await store.list(run)
        assert [entry.step for entry in listed] == kept
        assert [entry.step for entry in listed if entry.dropped == {OPTIMIZER}] == dropped
        if not killed:
            break
    print(f"{struck} kills of {work}")
    assert struck >= 2
    await store.sweep(run, 0.0)
    assert len(server.record.versions(run.project, artifact_name(run.run))) == len(kept)
    assert len(server.record.versions(run.project, optimizer_name(run.run))) == len(kept) - len(dropped)


@pytest.mark.heavy
@pytest.mark.parametrize(("status", "error"), [(401, StoreError), (503, StoreUnavailableError)])
async def test_every_call_tells_what_may_pass_and_loses_nothing(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path, status: int, error: type[StoreError]
) -> None:
    """A key that ran out, and a server that is down: the same call succeeds once that is over."""
    for step in (1, 2, 3):
        await store.commit(run, staged(tmp_path, run, step))
    calls: dict[str, Callable[[], Any]] = {
        "runs": store.runs,
        "list": lambda: store.list(run),
        "fetch": lambda: store.fetch(run, 3, tmp_path / "fetched"),
        "drop": lambda: store.drop_optimizer(run, [2]),
        "delete": lambda: store.delete(run, [1], [3]),
        "sweep": lambda: store.sweep(run, 0.0),
    }
    for name, call in calls.items():
        server.fault = lambda method, asked: status
        with pytest.raises(StoreError) as caught:
            await call()
        assert type(caught.value) is error, (name, caught.value)
        assert caught.value.retryable is (error is StoreUnavailableError)
        assert error is StoreUnavailableError or "set WANDB_API_KEY" in str(caught.value), (name, caught.value)
        server.fault = None
        assert {3} <= {entry.step for entry in await store.list(run)}
        await call()
    entries = await store.list(run)
    assert [(entry.step, bool(entry.dropped)) for entry in entries] == [(2, True), (3, False)]


@pytest.mark.heavy
async def test_many_steps_are_listed_by_few_requests(
    server: WandbServer, store: WandbStore, run: RunKey, tmp_path: Path
) -> None:
    """All versions but the first are written past the store: copies of that one under manifests of their own."""
    first = await store.commit(run, staged(tmp_path, run, 0))
    names = {"lora": artifact_name(run.run), "optimizer": optimizer_name(run.run)}
    originals = {kind: server.record.versions(run.project, name)[0] for kind, name in names.items()}
    for step in range(1, MANY):
        manifest = first.manifest.model_copy(update={"step": step})
        text = {"manifest.json": manifest_bytes(manifest)}
        for kind, original in originals.items():
            known = lora_metadata(run, manifest, False) if kind == "lora" else state_metadata(run, manifest)
            files, place = {**original.files, **text}, f"{kind} {step}"
            made = replace(original, id=place, version=step, metadata=json.dumps(known), files=files, aliases=set())
            server.record.artifacts[made.id] = made
    asked, start = len(server.asked), time.perf_counter()
    assert [entry.step for entry in await store.list(run)] == list(range(MANY))
    # only these: what the SDK asks by itself of a run that it has open comes when it will
    requests = sum("ProjectArtifacts" in each for each in server.asked[asked:])
    print(f"list of {MANY} steps: {requests} requests, {time.perf_counter() - start:.2f} s")
    assert 2 * MANY // PAGE <= requests <= 2 * (MANY // PAGE + 2)
    for kind in originals:  # so that other tests of this server need not carry them
        for step in range(1, MANY):
            del server.record.artifacts[f"{kind} {step}"]
