"""A W&B server of ours on loopback; the SDK finds it by the environment, and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from art_wandb.process import WANDB

from tests.servers.wandb import WandbServer


@pytest.fixture(scope="session")
def server() -> Iterator[WandbServer]:
    """The server; the SDK's process ends before it."""
    with WandbServer() as server, pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        yield server
        WANDB.close()
    assert not server.unknown


@pytest.fixture(autouse=True)
def no_faults(server: WandbServer) -> Iterator[None]:
    """Every test ends with a server that is well."""
    yield
    server.fault = server.done = server.cut_bytes = None
    server.revoked.clear()
    server.words = "as the test asks"
