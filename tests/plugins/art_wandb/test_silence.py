"""A W&B server that takes calls and never answers holds up neither who is cancelled nor a program's end."""

from __future__ import annotations

import asyncio
import select
import socket

import pytest
from art_wandb.options import WandbStoreOptions
from art_wandb.process import WANDB
from art_wandb.store import WandbStore

from art_core.run_key import RunKey
from art_core.testing.condition import TOLD_S, until, within
from tests.servers.wandb import WandbServer


async def test_nobody_waits_for_a_silent_server(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        call = asyncio.create_task(WandbStore(WandbStoreOptions()).list(RunKey("p", "r")))
        await until(lambda: call.done() or select.select([silent], [], [], 0)[0], "the server is asked")
        with within(TOLD_S, "a cancelled call ends"):
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        with within(TOLD_S, "and so does the process that made it"):
            WANDB.close()
