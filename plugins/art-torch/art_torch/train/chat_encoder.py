"""Chats as tokens, with those marked that supervised fine-tuning is to learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from art_core.engine_front import RequestError
from art_core.errors import ConfigError, TokenizationError
from art_core.supervised import EncodedChat, EncodeRequest, SupervisedChat
from art_torch.serve.chat import ChatTemplate


@dataclass
class _Rendering:
    """A chat's text so far, and which parts of it the assistant said."""

    text: str
    spans: list[tuple[int, int]]


class ChatEncoder:
    """Renders and tokenises with one model's tokenizer.

    What the assistant said in a turn is found in text: it begins where the rendering up to the turn, answer prompt
    included, and the rendering through the turn part, and it ends with the turn. Both are whole renderings of the
    template, as an engine would make them; nothing is known of any template's markup.

    Args:
        tokenizer: A fast one, with its chat template.

    Raises:
        ConfigError: The tokenizer can't say which text a token stands for, or the template is no Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the base model's tokenizer is a {type(tokenizer).__name__}, which can't say which text a token "
                "stands for; supervised fine-tuning needs a fast one (tokenizer.json)"
            )
        self._tokenizer: Any = tokenizer
        self._template = ChatTemplate(tokenizer, {})
        self._ends = tuple(dict.fromkeys(map(str, tokenizer.all_special_tokens)))

    def encode(self, request: EncodeRequest) -> list[EncodedChat]:
        """Every chat's sequences; see `SupervisedTrainer.encode`.

        Args:
            request: Chats, and how to render them.

        Raises:
            TokenizationError: The template is missing or refuses a chat.
        """
        return [
            self._encoded(rendering, index)
            for index, chat in enumerate(request.chats)
            for rendering in self._renderings(chat, request)
        ]

    def _renderings(self, chat: SupervisedChat, request: EncodeRequest) -> Iterator[_Rendering]:
        answers = chat.answers
        last: _Rendering | None = None
        for answer in answers if request.turns == "all" else answers[-1:]:
            text, span = self._turn(chat, answer, request.template_variables)
            if last is not None and text.startswith(last.text[: last.spans[-1][1]]):
                last = _Rendering(text, [*last.spans, span])
                continue
            if last is not None:
                yield last
            last = _Rendering(text, [span])
        if last is not None:
            yield last

    def _turn(self, chat: SupervisedChat, answer: int, variables: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
        """The chat's text through an assistant message, and where in it that was said."""
        messages = [dict(message) for message in chat.messages[: answer + 1]]
        tools = [dict(tool) for tool in chat.tools] if chat.tools else None
        try:
            asked = self._template.text(messages[:-1], tools, variables, to_answer=True)
            before = self._template.text(messages[:-1], tools, variables, to_answer=False)
            text = self._template.text(messages, tools, variables, to_answer=False)
        except RequestError as error:
            raise TokenizationError(f"{chat.name}, message {answer}: {error}") from error
        start = _common_length(asked, text)
        if start < len(before):
            raise TokenizationError(
                f"{chat.name}, message {answer}: the chat template rewrites the messages before an answer once it is "
                f"there ({before[start : start + 40]!r}); what was asked and what was said can't be told apart"
            )
        return text, (start, self._end(text))

    def _end(self, text: str) -> int:
        """Where a turn ends: with the special token that ends it, for a policy stops there and writes no newline."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self._ends) else len(text)

    def _encoded(self, rendering: _Rendering, chat_index: int) -> EncodedChat:
        made = self._tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)
        starts_T, ends_T = np.asarray(made["offset_mapping"], np.int64).reshape(-1, 2).T
        trained_T = np.zeros(len(starts_T), np.bool_)
        for start, end in rendering.spans:
            trained_T |= (starts_T >= start) & (ends_T <= end) & (ends_T > starts_T)
        trained_T[:1] = False
        return EncodedChat(chat_index, np.asarray(made["input_ids"], np.int32), trained_T)


def _common_length(first: str, second: str) -> int:
    """Characters that both begin with."""
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)
