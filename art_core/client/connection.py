"""How a rollout reaches the address that serves its model."""

from __future__ import annotations

import logging
from typing import Any

from openai import DEFAULT_CONNECTION_LIMITS, APIConnectionError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
from openai.types.chat import ChatCompletion

from art_core.client.capture import record_completion
from art_core.errors import LocalServingUnavailableError
from art_core.trajectory import recording

REQUEST_S, CONNECT_S = 1200.0, 5.0
"""A long agent turn may take minutes; an address that can't be reached is known at once."""
CONNECTIONS = 100_000
"""Thousands of rollouts wait at once; none may wait for another's connection."""

_log = logging.getLogger("art.client")


class RecordingClient(AsyncOpenAI):
    """An OpenAI client whose chat completions are recorded by the trajectory whose block the caller is in."""

    managed = False
    """Whether a backend of ours serves the address."""

    async def post(self, path: str, **options: Any) -> Any:  # the parent spells them out
        """As the parent's, which every resource calls.

        Raises:
            LocalServingUnavailableError: The address is a backend's and can't be reached.
        """
        try:
            result = await super().post(path, **options)
        except APIConnectionError as error:
            if not self.managed:
                raise
            raise LocalServingUnavailableError(
                f"{self.base_url} can't be reached ({error.__cause__ or error}); the backend that served it is closed "
                f"or has ended: `await model.register(backend)` again"
            ) from error
        if recording.get() and path == "/chat/completions":
            if isinstance(result, ChatCompletion):
                record_completion(recording.get()[-1], options["body"], result)
            else:
                _log.warning("a streamed or raw chat completion is not recorded by the trajectory around it")
        return result


def openai_client(base_url: str, api_key: str, *, managed: bool = False) -> AsyncOpenAI:
    """An OpenAI client fit for many long requests at once; the gateway asks for token ids and logprobs itself.

    Args:
        base_url: Ends in ``/v1``.
        api_key: The gateway's, or the provider's.
        managed: Whether a backend of ours serves the address.
    """
    limits = type(DEFAULT_CONNECTION_LIMITS)  # of whichever HTTP library this version of openai is built on
    client = RecordingClient(
        base_url=base_url,
        api_key=api_key,
        http_client=DefaultAsyncHttpxClient(
            timeout=Timeout(REQUEST_S, connect=CONNECT_S),
            limits=limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        ),
    )
    client.managed = managed
    return client
