"""A real S3 server: moto's on a loopback port, or the one that ``ART_TEST_S3`` names (see ``make test-rgw``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import botocore.config
import botocore.session
import pytest
from art_s3.options import S3StoreOptions
from moto.server import ThreadedMotoServer

from tests.plugins.art_s3.place import Place


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The server's address; credentials are in the environment, where the AWS chain finds them."""
    if given := os.environ.get("ART_TEST_S3"):
        yield given
        return
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="session")
def client(server: str) -> Any:
    """botocore's client of the server."""
    config = botocore.config.Config(s3={"addressing_style": "path"})
    return botocore.session.get_session().create_client(
        "s3", endpoint_url=server, region_name="us-east-1", config=config
    )


@pytest.fixture
def place(client: Any, server: str) -> Place:
    """A bucket of its own, empty."""
    return Place.make(client, S3StoreOptions(endpoint_url=server))
