"""Bodies of completion requests: what is refused before SGLang sees it, and what ART decides in the rest.

SGLang checks parameters, but not that token ids are in the vocabulary: one that is not ends its scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from art_core.engine_front import RequestError

_TOKENS = ("prompt", "input_ids", "stop_token_ids")
"""Parameters that may hold token ids."""


def parse(raw: bytes, vocab_size: int) -> dict[str, Any]:
    """Read a body and refuse what must not reach SGLang.

    Args:
        raw: The body.
        vocab_size: Token ids are in [0, vocab_size).

    Raises:
        RequestError: 400, with parameter, value and what is allowed.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise RequestError(400, "the body must be an object with a string 'model'", param="model")
    if body.get("lora_path") is not None:
        raise RequestError(400, "name the adapter as 'model'; 'lora_path' is not served", param="lora_path")
    for name in _TOKENS:
        for token in _numbers(body.get(name)):
            if not 0 <= token < vocab_size:
                raise RequestError(
                    400,
                    f"parameter {name!r} holds token id {token}; allowed: 0 to {vocab_size - 1}",
                    param=name,
                    code="invalid_value",
                )
    return body


def for_sglang(
    body: Mapping[str, Any], key: str | None, template_kwargs: Mapping[str, object] | None
) -> dict[str, Any]:
    """What SGLang is asked instead.

    Args:
        body: As `parse` gave it.
        key: SGLang's name of the adapter; None: the base model.
        template_kwargs: For a chat: defaults of the template's arguments.
    """
    asked = {**body, "lora_path": key}
    if template_kwargs is not None:
        asked["chat_template_kwargs"] = {**template_kwargs, **(body.get("chat_template_kwargs") or {})}
        if body.get("stream"):
            asked["return_token_ids"] = False  # refused with streams; ART writes them into the chunks
    return asked


def _numbers(value: object) -> Iterable[int]:
    """The whole numbers of a list, or of a list of lists; text has none."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list):
                yield from _numbers(item)
            elif isinstance(item, int):
                yield item
