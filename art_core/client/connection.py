"""How a rollout reaches the address that serves its model."""

from __future__ import annotations

from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

REQUEST_S, CONNECT_S = 1200.0, 5.0
"""A long agent turn may take minutes; an address that can't be reached is known at once."""
CONNECTIONS = 100_000
"""Thousands of rollouts wait at once; none may wait for another's connection."""


def openai_client(base_url: str, api_key: str) -> AsyncOpenAI:
    """An OpenAI client fit for many long requests at once; the gateway asks for token ids and logprobs itself.

    Args:
        base_url: Ends in ``/v1``.
        api_key: The gateway's, or the provider's.
    """
    limits = type(DEFAULT_CONNECTION_LIMITS)  # of whichever HTTP library this version of openai is built on
    return AsyncOpenAI(
        base_url=base_url,
        api_key=api_key,
        http_client=DefaultAsyncHttpxClient(
            timeout=Timeout(REQUEST_S, connect=CONNECT_S),
            limits=limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        ),
    )
