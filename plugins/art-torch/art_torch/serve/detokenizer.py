"""Turn sampled tokens into text, token by token: never half a character, never a piece of a stop string."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one growing token sequence, special tokens left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0
        """First token decoded again with the new ones: a token's text can depend on its neighbour's."""
        self._read = 0
        """Tokens before this one have been handed out as text."""
        self._context_text = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now complete."""
        self._tokens.append(token)
        text = self._decode(self._context)
        if text.endswith(_INCOMPLETE):
            return ""
        new = text[len(self._context_text) :]
        self._context, self._read = self._read, len(self._tokens)
        self._context_text = self._decode(self._context)
        return new

    def flush(self) -> str:
        """The text of an incomplete last character, as replacement characters."""
        return self._decode(self._context)[len(self._context_text) :]

    def _decode(self, first: int) -> str:
        return str(
            self._tokenizer.decode(self._tokens[first:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


class TextStream:
    """Text as it may be sent: ends before the first stop string, holds back what may become one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._unsent = ""
        self.stopped = False
        """Whether a stop string has been met."""

    def push(self, token: int) -> None:
        """Add a sampled token."""
        self._add(self._detokenizer.push(token))

    def take(self) -> str:
        """The text that is safe to send now."""
        held = 0 if self.stopped else self._held()
        cut = len(self._unsent) - held
        sent, self._unsent = self._unsent[:cut], self._unsent[cut:]
        return sent

    def finish(self) -> str:
        """The rest of the text; nothing can follow it."""
        if not self.stopped:
            self._add(self._detokenizer.flush())
        return self._unsent

    def _add(self, text: str) -> None:
        self._unsent += text
        found = [at for stop in self._stop if (at := self._unsent.find(stop)) >= 0]
        if found:
            self._unsent = self._unsent[: min(found)]
            self.stopped = True

    def _held(self) -> int:
        """Length of the longest end of the unsent text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._unsent)), 0, -1):
            if any(stop.startswith(self._unsent[-length:]) for stop in self._stop):
                return length
        return 0
