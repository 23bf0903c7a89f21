"""How the gateway reaches the engine: the one that answers now, or why none does.

The gateway's thread asks; whoever sees the engine die or come back says so from another thread. Each of those is one
assignment, so a request sees the one or the other.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import httpx

from art_core.config import Timeouts
from art_core.errors import EngineUnavailableError
from art_core.protocols.engine import Endpoint

# engines drop idle connections after 5 s at the earliest; ours go first, so that none breaks under a request
_POOL = httpx.Limits(max_connections=None, max_keepalive_connections=512, keepalive_expiry=4.0)
_LONGEST_RETRY_AFTER_S = 60
"""OpenAI's clients take a longer one for an error and come back at once."""


@dataclass(frozen=True)
class Outage:
    """The engine is down."""

    reason: str
    """For the people behind the requests."""
    back_at_s: float | None
    """When it is expected back, on the clock of `time.monotonic`; None: it does not come back by itself."""


class EngineClient:
    """Asks the engine that answers now.

    Args:
        endpoint: The started engine.
        timeouts: `connect_s` and `request_s` are used.
    """

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        # one pool for every engine there will be: connections to one that has died are broken, and go by themselves
        self._http = httpx.AsyncClient(
            # identity: a chunk must leave the engine's socket as the text that the gateway marks
            headers={"accept-encoding": "identity", "content-type": "application/json"},
            timeout=httpx.Timeout(timeouts.request_s, connect=timeouts.connect_s, pool=None),
            limits=_POOL,
            trust_env=False,
        )
        self._now: Endpoint | Outage = endpoint
        self._start_s = 1.0

    def follow(self, endpoint: Endpoint, start_s: float) -> None:
        """Send requests there from now on.

        Args:
            endpoint: A started engine.
            start_s: How long it took to come up, seconds: what to tell clients should it die.
        """
        self._now, self._start_s = endpoint, start_s

    def suspend(self, outage: Outage) -> None:
        """Refuse requests from now on."""
        self._now = outage

    async def send(self, method: str, path: str, content: bytes = b"") -> httpx.Response:
        """Ask the engine; when this returns, the answer's body is yet to be read, and then closed.

        Raises:
            EngineUnavailableError: There is no engine now.
            httpx.TransportError: It could not be reached, or broke off.
        """
        now = self._now
        if isinstance(now, Outage):
            raise EngineUnavailableError(now.reason)
        headers = {"authorization": f"Bearer {now.api_key}"}
        request = self._http.build_request(method, now.base_url + path, content=content, headers=headers)
        return await self._http.send(request, stream=True)

    def retry_after_s(self) -> int | None:
        """What to tell a client whose request the engine did not answer; None: it need not ask again.

        Clients ask again two or three times only, so they are told to come when the engine is likely to be back, and
        never sooner than half of its last start.
        """
        now, left_s = self._now, self._start_s
        if isinstance(now, Outage):
            if now.back_at_s is None:
                return None
            left_s = max(now.back_at_s - time.monotonic(), self._start_s / 2)
        return min(max(math.ceil(left_s), 1), _LONGEST_RETRY_AFTER_S)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()
