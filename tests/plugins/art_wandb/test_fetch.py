"""Files on their way from W&B: a server that breaks off may be asked again, a disk that is full may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_wandb.options import WandbStoreOptions
from art_wandb.store import WandbStore

from art_core.checkpoint import verify
from art_core.errors import StoreUnavailableError
from art_core.run_key import RunKey
from tests.servers.wandb import WandbServer
from tests.staged import stage_step


@pytest.mark.parametrize("cut_bytes", [None, 0, 100])
async def test_a_download_that_fails_is_made_again(server: WandbServer, tmp_path: Path, cut_bytes: int | None) -> None:
    store, run = WandbStore(WandbStoreOptions()), RunKey("fetch", tmp_path.name)
    made = await store.commit(run, stage_step(tmp_path / run.run, 1))
    server.cut_bytes = cut_bytes
    if cut_bytes is None:
        server.fault = lambda method, asked: 503 if method == "GET" else None
    with pytest.raises(StoreUnavailableError, match=r"can't download \w+\.\w+ now") as caught:
        await store.fetch(run, 1, tmp_path / "cut")
    assert "/storage/" not in str(caught.value).split("\n")[0], "an address is signed, and is not for a log"
    server.fault = server.cut_bytes = None
    fetched = await store.fetch(run, 1, tmp_path / "fetched")
    assert verify(fetched.directory) == made.manifest
