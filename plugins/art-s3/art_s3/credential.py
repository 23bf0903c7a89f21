"""Credentials and region by the usual AWS chain, from botocore; most requests go through another client."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.config
import botocore.session
from botocore.exceptions import BotoCoreError

from art_core.errors import ConfigError, StoreUnavailableError
from art_s3.failure import NO_CREDENTIALS
from art_s3.options import S3StoreOptions

_FRESH_S = 300.0
"""After so long botocore is asked again; it knows itself when its credentials must be renewed."""

_CONNECTIONS = 32
"""So many are kept: as many calls are made at once."""

_log = logging.getLogger("art.store")


@dataclass(frozen=True)
class Account:
    """Where requests go, and as whom."""

    session: Any
    endpoint_url: str | None
    region: str
    path_style: bool
    timeout_s: float

    def __call__(self) -> Any:
        """Credentials of now, as obstore asks for them.

        Raises:
            ConfigError: The chain has none.
            StoreUnavailableError: They have run out, and can't be renewed now.
        """
        try:
            found = self.session.get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except BotoCoreError as error:
            raise StoreUnavailableError(f"AWS credentials can't be renewed: {error}") from error
        if frozen is None:
            raise ConfigError(NO_CREDENTIALS)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=_FRESH_S),
        }

    def client(self, retries: int) -> Any:
        """Botocore's own client, for what obstore lacks or does worse.

        Args:
            retries: A request that failed in a way that may pass is made again so often.
        """
        config = botocore.config.Config(
            s3={"addressing_style": "path" if self.path_style else "auto"},
            connect_timeout=self.timeout_s,
            read_timeout=self.timeout_s,
            retries={"max_attempts": retries},
            max_pool_connections=_CONNECTIONS,
            response_checksum_validation="when_required",  # what is read is hashed by us
        )
        return self.session.create_client("s3", endpoint_url=self.endpoint_url, region_name=self.region, config=config)


def account(options: S3StoreOptions) -> Account:
    """Read the AWS configuration; asks no server.

    Raises:
        ConfigError: The profile does not exist.
    """
    try:
        session = botocore.session.Session(profile=options.profile)
        region = options.region or session.get_config_variable("region") or "us-east-1"
        endpoint = options.endpoint_url or _configured_endpoint(session)
    except BotoCoreError as error:
        raise ConfigError(f"the AWS configuration can't be used: {error}") from error
    path_style = options.path_style if options.path_style is not None else endpoint is not None
    return Account(session, endpoint, region, path_style, options.timeout_s)


def _configured_endpoint(session: Any) -> str | None:
    """The endpoint that variables or the profile name; botocore resolves it when it makes a client."""
    client = session.create_client("s3", region_name="us-east-1")
    url: str = client.meta.endpoint_url
    return None if url.endswith(".amazonaws.com") else url
