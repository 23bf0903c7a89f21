"""What the gateway adds to a completion on its way in and out. Pure: bytes and plain JSON data.

In: what training needs and the caller did not decide. Out, on every choice: `prompt_token_ids`, `policy_step` and
`temperature`, so that a trajectory that holds choices alone can be trained on; and `model`, the pinned public name
of the step that answered.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

_log = logging.getLogger("art.gateway")

_CHAT = {"logprobs": True, "return_token_ids": True}
# 1 rather than 0: some engines take 0 for "no logprobs", though the API's own meaning is "the sampled token's only"
_TEXT = {"logprobs": 1, "return_token_ids": True}

# `model` as a key, in a chunk's own bytes: inside a JSON string the quote before it would be escaped
_MODEL = re.compile(rb'([{,]\s*"model"\s*:\s*)"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Served:
    """Who answers a request, for the answer to say."""

    name: str
    """Public name: ``name@step``, or the base model's."""
    step: int | None
    """None for the base model."""
    temperature: float
    """That the tokens are sampled at."""


def with_defaults(payload: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """A request with what training needs: token ids, logprobs, and the sampling that the answer will claim.

    Temperature and top_p are written out because an engine may otherwise take them from the model's
    `generation_config.json`, and the tokens would be recorded under another distribution than theirs.

    Args:
        payload: The caller's request; what it sets stays.
        chat: Whether it is for chat completions.
    """
    request = {**(_CHAT if chat else _TEXT), **payload}
    for key in ("temperature", "top_p"):
        if request.get(key) is None:
            request[key] = 1.0
    for key, neutral in _TRUNCATION.items():
        value = request.get(key)
        if isinstance(value, int | float) and not neutral(value):
            _warn_truncated(key)
    return request


_TRUNCATION: dict[str, Callable[[float], bool]] = {
    "top_p": lambda value: value >= 1,
    "top_k": lambda value: value <= 0,
    "min_p": lambda value: value <= 0,
}
"""Sampling options that cut the distribution, and which values of theirs don't."""


@cache
def _warn_truncated(key: str) -> None:
    """Cached: said once per process and option."""
    _log.warning(
        "a request samples with %s: its logprobs are not the policy's, and importance ratios made of them are "
        "biased; leave it out of rollouts (said once)",
        key,
    )


def choice_count(payload: dict[str, Any]) -> int:
    """How many choices a request asks for: `n`, times its prompts."""
    prompts = 1
    match payload.get("prompt"):
        case [first, *rest] if not isinstance(first, int):
            prompts += len(rest)
    return int(payload.get("n") or 1) * prompts


def mark(answer: dict[str, Any], served: Served) -> None:
    """Write into a completion, or one chunk of it, who answered; in place.

    Args:
        answer: Parsed JSON.
        served: Who.
    """
    answer["model"] = served.name
    prompt_token_ids = answer.get("prompt_token_ids")
    for choice in answer.get("choices", ()):
        if prompt_token_ids is not None and choice.get("prompt_token_ids") is None:
            choice["prompt_token_ids"] = prompt_token_ids
        if served.step is not None:
            choice["policy_step"] = served.step
        choice["temperature"] = served.temperature


class StreamMarker:
    """Marks a stream of server-sent events as they pass.

    Chunks are parsed, and carry the same extras as a whole completion, until every choice has begun: so a choice's
    first chunk always says who answered. Of later chunks only `model` is to be right. Most engines write the name
    that they were asked for, which is ours: then all that is left of a stream passes as it is.

    Args:
        served: Who answers.
        choices: How many choices the stream will have.
    """

    def __init__(self, served: Served, choices: int) -> None:
        self._served = served
        self._model = rb"\g<1>" + json.dumps(served.name).encode().replace(b"\\", b"\\\\")
        self._choices = choices
        self._seen: set[int] = set()
        self._passes = True
        """Whether every chunk so far had the name already."""
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, and give all lines that are whole by now.

        Args:
            data: Any cut of the stream.
        """
        whole, end, self._tail = (self._tail + data).rpartition(b"\n")
        if not end or (self._begun and self._passes):
            return whole + end
        return b"".join([self._line(line) + b"\n" for line in whole.split(b"\n")])

    def end(self) -> bytes:
        """What is left when the stream is over."""
        return self._line(self._tail)

    @property
    def _begun(self) -> bool:
        return len(self._seen) >= self._choices

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b"{" not in line:
            return line
        if self._begun:
            return line if self._passes else _MODEL.sub(self._model, line, count=1)
        chunk = json.loads(line[5:])
        if chunk.get("choices"):
            self._passes = self._passes and chunk.get("model") == self._served.name
        mark(chunk, self._served)
        self._seen.update(choice["index"] for choice in chunk.get("choices", ()))
        return b"data: " + dump(chunk)


def dump(data: object) -> bytes:
    """Compact JSON."""
    return json.dumps(data, separators=(",", ":")).encode()
