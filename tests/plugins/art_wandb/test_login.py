"""Who the W&B process talks to W&B as: the key of now, and never by way of the user's own program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from art_wandb.options import WandbStoreOptions
from art_wandb.process import WANDB
from art_wandb.store import WandbStore

import art
from art.local import LocalBackend
from art_core.errors import StoreError, StoreUnavailableError
from art_core.run_key import RunKey
from art_core.testing.condition import LONGEST_S
from tests.art_core.rollout import group
from tests.plugins.art_wandb.test_store import staged
from tests.servers.wandb import WandbServer

RUN = RunKey("login", "run")
REVOKED = "b" * 40


def process() -> int:
    """The W&B process of now."""
    assert WANDB._connection is not None
    return WANDB._connection._child.pid


@pytest.fixture
def store(server: WandbServer) -> WandbStore:
    return WandbStore(WandbStoreOptions())


async def refused(store: WandbStore, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        await store.check()
    assert not isinstance(caught.value, StoreUnavailableError)


async def test_no_key_is_refused_and_one_that_is_set_then_is_taken(
    store: WandbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delenv("WANDB_API_KEY")
        without.setenv("HOME", str(tmp_path))
        await refused(store, r"(?s)log in to W&B.*set WANDB_API_KEY, or run `wandb login`")
    await store.check()


async def test_a_key_that_is_revoked_is_noticed_and_a_new_one_is_taken(
    server: WandbServer, store: WandbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", REVOKED)
    await store.check()
    await store.commit(RUN, staged(tmp_path, RUN, 1))
    server.revoked.add(REVOKED)
    await refused(store, "log in to W&B: .*; set WANDB_API_KEY")
    with pytest.raises(StoreError, match=r"log in to W&B: .*; set WANDB_API_KEY"):
        await store.list(RUN)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    await store.check()
    assert [entry.step for entry in await store.list(RUN)] == [1]


async def test_a_key_that_belongs_to_nobody_is_refused(
    server: WandbServer, store: WandbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So W&B answers a key that has the form of one: by no account, and no error."""
    WANDB.close()
    monkeypatch.setattr(server.api, "_viewer", lambda: None)
    await refused(store, "log in to W&B: .*; set WANDB_API_KEY")


@pytest.mark.heavy
async def test_a_server_that_is_down_does_not_make_a_key_wrong(
    server: WandbServer, store: WandbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK calls every failure of a login one of authentication."""
    WANDB.close()
    server.fault = lambda method, asked: 503
    with pytest.raises(StoreUnavailableError, match="log in to W&B now"):
        await store.check()
    server.fault = None
    await store.check()


@pytest.mark.heavy
async def test_a_login_in_another_terminal_is_taken_after_a_refusal(
    server: WandbServer, store: WandbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key stands in a file there, and no variable changes."""
    file = tmp_path / "netrc"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(file))
    host = server.url.removeprefix("http://")
    for key in (REVOKED, "a" * 40):
        file.write_text(f"machine {host}\n  login user\n  password {key}\n")
        file.chmod(0o600)
        if key == REVOKED:
            await store.check()
            server.revoked.add(REVOKED)
            await refused(store, "log in to W&B: ")
    await store.check()
    assert await store.list(RunKey("login", "nobody")) == []


@pytest.mark.heavy
async def test_a_process_stays_while_nothing_changes(store: WandbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.check()
    before = process()
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    await store.check()
    assert process() == before
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_NOTES", "another setting")
    await store.check()
    assert process() != before and not psutil.pid_exists(before)


@pytest.mark.parametrize("mode", [pytest.param("offline", marks=pytest.mark.heavy), "disabled"])
async def test_where_wandb_is_turned_off_its_store_says_so(
    server: WandbServer, store: WandbStore, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    await refused(store, f"WANDB_MODE is '{mode}', so nothing reaches W&B; unset it")


@pytest.mark.parametrize(
    ("mode", "told"), [("disabled", False), pytest.param("offline", True, marks=pytest.mark.heavy)]
)
async def test_where_wandb_is_turned_off_a_program_goes_on(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    told: bool,
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    model = art.Model(name=mode, project="login", report_metrics=["wandb"])
    async with LocalBackend(path=tmp_path) as backend:
        await model.register(backend)
        await model.log([group(1.0, 0.0)], split="train", step=1)
    assert ("login", mode) not in server.record.runs
    assert ("observer art_on_log of plugin 'wandb' failed" in caplog.text) is told
    assert "history.jsonl" in {path.name for path in (tmp_path / "login/models" / mode).iterdir()}


PROGRAM = """
import asyncio, sys
from pathlib import Path
import wandb
from art_wandb.options import WandbStoreOptions
from art_wandb.process import WANDB
from art_wandb.store import WandbStore
from art_core.run_key import RunKey
from tests.staged import stage_step

root = Path(sys.argv[1])
mine = wandb.init(project="own", id="mine", dir=root)
run = RunKey("own", "ours")
asyncio.run(WandbStore(WandbStoreOptions()).commit(run, stage_step(root / run.run, 1)))
WANDB.close()
mine.log({"loss": 1.0})
mine.finish()
"""


@pytest.mark.heavy
def test_a_program_s_own_use_of_wandb_is_left_alone(server: WandbServer, tmp_path: Path) -> None:
    """Its background service is none of ours: what we began has ended with our process, what it began goes on."""
    seen = []

    def look(method: str, asked: str) -> None:
        if "own/mine/file_stream" in asked:
            seen.append(server.record.runs["own", "ours"].state)

    server.fault = look
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ended = subprocess.run(
        command,
        check=False,
        env={**os.environ, "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    assert ended.returncode == 0, ended.stderr
    assert seen[-1] == "finished"
    assert [line["loss"] for line in server.record.runs["own", "mine"].history] == [1.0]
