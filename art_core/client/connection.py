"""How a rollout reaches the address that serves its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from openai import DEFAULT_CONNECTION_LIMITS, APIConnectionError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
from openai.types.chat import ChatCompletion

from art_core.chat import ChatCompletionsExchange
from art_core.errors import LocalServingUnavailableError
from art_core.trajectory import recording

REQUEST_S, CONNECT_S = 1200.0, 5.0
"""A long agent turn may take minutes; an address that can't be reached is known at once."""
CONNECTIONS = 100_000
"""Thousands of rollouts wait at once; none may wait for another's connection."""

_log = logging.getLogger("art.client")


@dataclass(frozen=True)
class Manner:
    """How a model's client differs from a plain one."""

    managed: bool = False
    """Whether a backend of ours serves the address."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Part of every chat completion's body; what the caller gives wins."""
    answered: Callable[[ChatCompletion], None] = lambda completion: None
    """Called with every chat completion."""


class ModelClient(AsyncOpenAI):
    """An OpenAI client whose chat completions are recorded by the trajectory whose block the caller is in."""

    manner = Manner()

    async def post(self, path: str, **options: Any) -> Any:  # the parent spells them out
        """As the parent's, which every resource calls.

        Raises:
            LocalServingUnavailableError: The address is a backend's and can't be reached.
        """
        chat = path == "/chat/completions"
        if chat:
            options = self._whole(options)
        started = datetime.now(UTC)
        try:
            result = await super().post(path, **options)
        except APIConnectionError as error:
            if not self.manner.managed:
                raise
            raise LocalServingUnavailableError(
                f"{self.base_url} can't be reached ({error.__cause__ or error}); the backend that served it is closed "
                f"or has ended: `await model.register(backend)` again"
            ) from error
        if chat:
            self._take(options["body"], result, started)
        return result

    def copy(self, **options: Any) -> Self:
        """As the parent's; the copy records too."""
        client = super().copy(**options)
        client.manner = self.manner
        return client

    with_options = copy

    def _whole(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options whose body is all that is sent: the caller's, with what he added to it, and our own."""
        request: dict[str, Any] = dict(options.get("options") or {})
        given = {**options["body"], **(request.pop("extra_json", None) or {})}
        body = {**self.manner.extra_body, **given}
        for key, value in self.manner.extra_body.items():
            if isinstance(value, dict) and isinstance(given.get(key), dict):
                body[key] = {**value, **given[key]}
        return {**options, "body": body, "options": request}

    def _take(self, request: dict[str, Any], result: object, started: datetime) -> None:
        if isinstance(result, ChatCompletion):
            self.manner.answered(result)
        if not recording.get():
            return
        if not isinstance(result, ChatCompletion):
            _log.warning("a streamed or raw chat completion is not recorded by the trajectory around it")
            return
        exchange = ChatCompletionsExchange(
            request={**request, "messages": [_plain(message) for message in request["messages"]]},
            response=result,
            start_time=started,
            end_time=datetime.now(UTC),
        )
        recording.get()[-1].exchanges.chat_completions.append(exchange)


def _plain(message: Any) -> dict[str, Any]:
    """A copy of a request's message; programs put the answer's own message object there too."""
    return dict(message) if isinstance(message, Mapping) else message.model_dump(exclude_none=True)


def openai_client(base_url: str, api_key: str, manner: Manner) -> AsyncOpenAI:
    """An OpenAI client fit for many long requests at once.

    Args:
        base_url: Ends in ``/v1``.
        api_key: The gateway's, or the provider's.
        manner: How it differs from a plain one.
    """
    limits = type(DEFAULT_CONNECTION_LIMITS)  # of whichever HTTP library this version of openai is built on
    client = ModelClient(
        base_url=base_url,
        api_key=api_key,
        http_client=DefaultAsyncHttpxClient(
            timeout=Timeout(REQUEST_S, connect=CONNECT_S),
            limits=limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        ),
    )
    client.manner = manner
    return client
