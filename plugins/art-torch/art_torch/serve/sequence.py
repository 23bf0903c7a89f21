"""One completion under way: its tokens, how it is sampled, and where its updates go."""

from __future__ import annotations

import random
from asyncio import Queue
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_torch.serve.adapter_table import Adapter
from art_torch.serve.detokenizer import TextStream


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_tokens: int
    """Most tokens to sample; 0: only score the prompt."""
    temperature: float = 1.0
    """0: the likeliest token; its logprobs are then those at temperature 1."""
    top_p: float = 1.0
    """Choose from the smallest set of likeliest tokens that together have this probability.
    Source: Holtzman et al. 2019 (arXiv:1904.09751), equation 2."""
    top_k: int = 0
    """Choose from that many likeliest tokens; 0: from all."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are cut off."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end the sequence: the end-of-text tokens too, unless they are ignored."""
    min_tokens: int = 0
    """Before that many tokens nothing ends the sequence."""
    logprobs: int | None = None
    """Number of likeliest tokens to report beside the sampled one; None: no logprobs."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and what the model said of it; natural logarithm."""

    token: int
    logprob: float
    rank: int | None = None
    """1 for the likeliest token; counted for prompt tokens only."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their logprobs, best first."""


class Sequence:
    """A prompt and what has been sampled after it.

    Args:
        prompt: Token ids.
        sampling: How to go on.
        adapter: What to run on, already acquired.
        queue: Where updates go.
        text: Builds the text; None where no text is wanted.
    """

    def __init__(
        self, prompt: list[int], sampling: Sampling, adapter: Adapter, queue: Queue[Update], text: TextStream | None
    ) -> None:
        self.sampling = sampling
        self.adapter = adapter
        self.queue = queue
        self.text = text
        self.choice = 0
        """Its index among the request's choices."""
        self.streams = False
        """Whether updates are wanted before the end."""
        self.cancelled = False
        """Set from any thread when nobody waits for it any more."""
        self.prompt_length = self.length = len(prompt)
        self.computed = 0
        """Tokens whose keys and values stand in its row."""
        self.prompt_scored: list[TokenLogprob] = []
        """Of the prompt's tokens from the second on, those scored so far."""
        self.unsent: list[TokenLogprob] = []
        self._buffer = np.empty(len(prompt) + sampling.max_tokens, np.int32)
        self._buffer[: self.length] = prompt
        self._random = random.Random()

    def seed(self, number: int) -> None:
        """Make the draws depend on the request's seed and the choice's number among its prompt's alone."""
        if self.sampling.seed is not None:
            self._random.seed(f"{self.sampling.seed}/{number}")

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Prompt and sampled tokens."""
        return self._buffer[: self.length]

    @property
    def prompt(self) -> NDArray[np.int32]:
        """The prompt's tokens."""
        return self._buffer[: self.prompt_length]

    @property
    def sampled(self) -> int:
        """Number of tokens sampled."""
        return self.length - self.prompt_length

    @property
    def scores_prompt(self) -> bool:
        """Whether prompt logprobs are still to be computed."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_scored) < self.prompt_length - 1

    def draw(self) -> float:
        """A uniform number in [0, 1) for the next token."""
        return self._random.random()

    def append(self, token: TokenLogprob) -> str | None:
        """Add a sampled token.

        Returns:
            The finish reason, where this token is the last one.
        """
        self._buffer[self.length] = token.token
        self.length += 1
        self.unsent.append(token)
        may_stop = self.sampled >= self.sampling.min_tokens
        if may_stop and token.token in self.sampling.stop_token_ids:
            return "stop"
        if self.text is not None:
            self.text.push(token.token)
            if may_stop and self.text.stopped:
                return "stop"
        return "length" if self.sampled == self.sampling.max_tokens else None

    def update(self, finish_reason: str | None) -> Update:
        """What is new since the last update."""
        tokens, self.unsent = tuple(self.unsent), []
        text = ""
        if self.text is not None:
            text = self.text.finish() if finish_reason else self.text.take()
        return Update(self, tokens, text, finish_reason)


@dataclass(frozen=True)
class Update:
    """What is new of a sequence."""

    sequence: Sequence
    tokens: tuple[TokenLogprob, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    """``"stop"`` or ``"length"``; None: it goes on, or `error` says why it does not."""
    error: str | None = None
