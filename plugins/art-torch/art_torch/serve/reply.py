"""Answers of completion requests in OpenAI's shapes, with the extras that training needs."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from art_torch.serve.request import Job
from art_torch.serve.sequence import TokenLogprob, Update
from art_torch.serve.tool_call import Reading, ToolFormat


class TokenText:
    """The text of single tokens, as logprobs show it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.decode = lru_cache(maxsize=1 << 16)(self._decode)

    def _decode(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))


@dataclass
class Choice:
    """What has been seen so far of one choice."""

    tokens: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    prompt_scored: list[TokenLogprob] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Take an update in."""
        self.tokens += update.tokens
        self.text += update.text
        self.finish_reason = update.finish_reason


class Speech:
    """What one chat choice says: its text, with the tool calls taken out where they are read."""

    def __init__(self, tool_format: ToolFormat | None) -> None:
        self._reader = None if tool_format is None else tool_format.reader()
        self._calls = 0

    def message(self, text: str) -> dict[str, Any]:
        """The message of a whole answer."""
        said = self.delta(text, "stop")
        for call in said.get("tool_calls", ()):
            del call["index"]
        return {
            "role": "assistant",
            **said,
            "content": None if self._calls and not said["content"] else said["content"],
        }

    def delta(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """What a stream says with its next piece of text; a call is said once it is whole."""
        if self._reader is None:
            return {"content": text}
        reading = self._reader.feed(text)
        rest = Reading() if finish_reason is None else self._reader.finish()
        calls = (*reading.calls, *rest.calls)
        shown = [
            {
                "index": index,
                "id": f"call_{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(calls, self._calls)
        ]
        self._calls += len(calls)
        content = {"content": reading.text + rest.text}
        return {**content, "tool_calls": shown} if shown else content

    def finish_reason(self, reason: str | None) -> str | None:
        """The model's own reason to stop, or that it waits for its calls' results."""
        return "tool_calls" if reason == "stop" and self._calls else reason


class Reply:
    """Builds the whole answer, or a stream's chunks, for one job."""

    def __init__(self, job: Job, texts: TokenText) -> None:
        self._job = job
        self._texts = texts
        self._chat = job.kind == "chat"
        self._begun: set[int] = set()
        self._speech: defaultdict[int, Speech] = defaultdict(lambda: Speech(job.tool_format))
        self._offsets: dict[int, int] = {}
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": job.model,
        }

    def whole(self, choices: Items[Choice]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        body = {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._whole_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": self.usage(sum(len(choice.tokens) for choice in choices)),
            **self._prompt_ids(),
        }
        if self._chat and self._job.samplings[0].prompt_logprobs is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(choices[0])
        return body

    def opening(self) -> list[dict[str, Any]]:
        """A chat stream's first chunks: one per choice with the role, the first with the prompt's token ids."""
        if not self._chat:
            return []
        role = {"role": "assistant", "content": ""}
        chunks = [
            self._chunk({"index": i, "delta": role, "logprobs": None, "finish_reason": None})
            for i in range(self._job.n)
        ]
        chunks[0] |= self._prompt_ids()
        self._begun = set(range(self._job.n))
        return chunks

    def chunk(self, update: Update) -> dict[str, Any]:
        """One chunk of a stream."""
        index = update.sequence.choice
        choice: dict[str, Any] = {"index": index, "logprobs": self._logprobs(update.tokens, index)}
        if self._chat:
            speech = self._speech[index]
            choice["delta"] = speech.delta(update.text, update.finish_reason)
            choice["finish_reason"] = speech.finish_reason(update.finish_reason)
        else:
            choice["text"] = update.text
            choice["finish_reason"] = update.finish_reason
        if self._job.return_token_ids:
            choice["token_ids"] = [token.token for token in update.tokens]
        first = index not in self._begun
        self._begun.add(index)
        if first and self._job.return_token_ids and not self._chat:
            choice["prompt_token_ids"] = self._job.prompts[index // self._job.n]
        chunk = self._chunk(choice)
        return chunk | self._prompt_ids() if first and len(self._begun) == 1 else chunk

    def last(self, completion_tokens: int) -> dict[str, Any]:
        """A stream's usage chunk."""
        return {**self._chunk(None), "usage": self.usage(completion_tokens)}

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """Token counts; a prompt counts once, however many choices it has."""
        prompt = sum(len(tokens) for tokens in self._job.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {"index": index, "logprobs": self._logprobs(choice.tokens, index)}
        if self._chat:
            speech = Speech(self._job.tool_format)
            shown["message"] = speech.message(choice.text)
            shown["finish_reason"] = speech.finish_reason(choice.finish_reason)
        else:
            shown["text"] = choice.text
            shown["finish_reason"] = choice.finish_reason
        if self._job.return_token_ids:
            shown["token_ids"] = [token.token for token in choice.tokens]
        if not self._chat:
            prompt = index // self._job.n
            if self._job.return_token_ids:
                shown["prompt_token_ids"] = self._job.prompts[prompt]
            if self._job.samplings[prompt].prompt_logprobs is not None:
                shown["prompt_logprobs"] = self._prompt_logprobs(choice)
        return shown

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        chunk = {
            **self._head,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": [] if choice is None else [choice],
        }
        if self._job.include_usage:
            chunk["usage"] = None
        return chunk

    def _prompt_ids(self) -> dict[str, Any]:
        one = self._job.return_token_ids and len(self._job.prompts) == 1
        return {"prompt_token_ids": self._job.prompts[0]} if one else {}

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._job.tokens_as_ids else self._texts.decode(token)

    def _logprobs(self, tokens: Items[TokenLogprob], index: int) -> dict[str, Any] | None:
        if self._job.samplings[0].logprobs is None:
            return None
        if self._chat:
            return {"content": [self._chat_logprob(token) for token in tokens], "refusal": None}
        offsets, offset = [], self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(self._texts.decode(token.token))
        self._offsets[index] = offset
        return {
            "tokens": [self._name(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._name(t): logprob for t, logprob in ((token.token, token.logprob), *token.top)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _chat_logprob(self, token: TokenLogprob) -> dict[str, Any]:
        top = [self._named(t, logprob) for t, logprob in token.top]
        return {**self._named(token.token, token.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": logprob, "bytes": list(self._texts.decode(token).encode())}

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, Any] | None]:
        shown: list[dict[str, Any] | None] = [None]
        for scored in choice.prompt_scored:
            ranked = [(t, logprob, rank) for rank, (t, logprob) in enumerate(scored.top, 1) if t != scored.token]
            entries = [(scored.token, scored.logprob, scored.rank), *ranked]
            shown.append(
                {
                    str(t): {"logprob": logprob, "rank": rank, "decoded_token": self._texts.decode(t)}
                    for t, logprob, rank in entries
                }
            )
        return shown
