"""What a run relies on, over the W&B store."""

from __future__ import annotations

import pytest
from art_wandb.options import WandbStoreOptions
from art_wandb.store import WandbStore

from tests.run_over_store import RunOverStore, Stores
from tests.servers.wandb import WandbServer


class TestWandb(RunOverStore):
    @pytest.fixture
    def stores(self, server: WandbServer) -> Stores:
        return lambda: WandbStore(WandbStoreOptions())
