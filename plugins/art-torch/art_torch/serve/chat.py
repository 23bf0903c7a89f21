"""Turn chat messages into prompt tokens by the model's template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from art_torch.serve.failure import RequestError, bad_parameter


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], kwargs: Mapping[str, object]
) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    Args:
        tokenizer: With its chat template.
        messages: As OpenAI's; content is a string, null or a list of text parts.
        kwargs: Further variables for the template.

    Raises:
        RequestError: The model has no template, or the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise RequestError(400, "the model has no chat template; use /v1/completions", param="messages")
    template: Any = tokenizer.apply_chat_template
    reserved = sorted(kwargs.keys() & inspect.signature(template).parameters.keys())
    if reserved:
        raise bad_parameter("chat_template_kwargs", reserved[0], "variables of the template, not the renderer's own")
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise bad_parameter("messages.role", message.get("role"), "a string, e.g. 'user'")
    flat = [{**message, "content": _text(message.get("content"))} for message in messages]
    try:
        tokens = template(flat, add_generation_prompt=True, tokenize=True, return_dict=False, **kwargs)
    except (jinja2.TemplateError, TypeError) as error:
        raise RequestError(400, f"the chat template refuses these messages: {error}", param="messages") from error
    return list(tokens)


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_parameter("messages.content", content, "a string, null, or a list of text parts")
    texts = []
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise bad_parameter(
                "messages.content", part, "{'type': 'text', 'text': string}; this engine reads text only"
            )
        texts.append(part["text"])
    return "\n".join(texts)
