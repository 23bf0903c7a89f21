"""Which sequences run, and what each of them computes next.

Continuous batching: sequences join and leave between forward passes. Sequence i of the running ones has cache row i.
"""

from __future__ import annotations

from collections import deque

from art_torch.serve.kv_cache import KVCache
from art_torch.serve.model_runner import Logits, Span
from art_torch.serve.prefix_cache import Entry, PrefixCache, common_prefix
from art_torch.serve.sequence import Sequence

_PREFILL_TOKENS = 512
"""Most prompt tokens in one pass: running sequences wait for them."""
_WORTH_WAITING_TOKENS = 16
"""A sequence lets a running one compute a shared prefix first if that saves at least so many tokens."""


class Scheduler:
    """Waiting and running sequences, and their rows in the cache."""

    def __init__(self, cache: KVCache, prefixes: PrefixCache, max_num_seqs: int) -> None:
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._cache = cache
        self._prefixes = prefixes
        self._max_num_seqs = max_num_seqs

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind the others."""
        self.waiting.append(sequence)

    def drop_cancelled(self) -> list[Sequence]:
        """Take out the sequences nobody waits for; returns them."""
        gone = [s for s in (*self.waiting, *self.running) if s.cancelled]
        if gone:
            self.waiting = deque(s for s in self.waiting if not s.cancelled)
            for sequence in [s for s in self.running if s.cancelled]:
                self.remove(sequence)
        return gone

    def plan(self) -> list[Span]:
        """Admit what fits, and say what every running sequence computes in the next pass, in row order."""
        self._admit()
        spans = self._spans()
        longest = max((span.start + len(span.tokens) for span in spans), default=0)
        while not self._cache.fits(len(self.running), longest):
            self._preempt()
            spans = self._spans()
            longest = max(span.start + len(span.tokens) for span in spans)
        self._cache.reserve(len(spans), longest)
        return spans

    def computed(self, spans: list[Span]) -> None:
        """The pass has been made: the spans' keys and values stand."""
        for sequence, span in zip(self.running, spans, strict=True):
            sequence.computed += len(span.tokens)

    def remove(self, sequence: Sequence) -> None:
        """Take a running sequence out; what it computed is remembered, and the last row takes its place."""
        row = self.running.index(sequence)
        if sequence.computed and not sequence.adapter.retired:
            tokens = sequence.tokens[: sequence.computed]
            self._prefixes.add(sequence.adapter.load_id, tokens, lambda: self._cache.extract(row, sequence.computed))
        self._vacate(row)

    def clear(self) -> list[Sequence]:
        """Drop every sequence, without keeping anything of it; returns them."""
        gone = [*self.running, *self.waiting]
        self.running, self.waiting = [], deque()
        return gone

    def _vacate(self, row: int) -> None:
        last = self.running.pop()
        if row < len(self.running):
            self._cache.move(len(self.running), row, last.computed)
            self.running[row] = last

    def _preempt(self) -> None:
        """The youngest sequence gives its row back and starts over, keeping the tokens it has sampled."""
        youngest = self.running[-1]
        self._vacate(len(self.running) - 1)
        youngest.computed = 0
        self.waiting.appendleft(youngest)

    def _admit(self) -> None:
        for sequence in list(self.waiting):
            rows, tokens = len(self.running) + 1, max(s.length for s in (sequence, *self.running))
            if rows > self._max_num_seqs or not self._cache.fits(rows, tokens):
                break
            if self._start(sequence):
                self.waiting.remove(sequence)

    def _start(self, sequence: Sequence) -> bool:
        """Give a sequence the next row, with as much of it as is known; False: better let another go first."""
        row, donor, ready, coming = len(self.running), None, 0, 0
        entry: Entry | None = None
        if not sequence.scores_prompt:
            usable = sequence.tokens[: sequence.length - 1]
            entry, ready = self._prefixes.find(sequence.adapter.load_id, usable)
            for index, other in enumerate(self.running):
                if other.adapter is sequence.adapter:
                    shared = common_prefix(other.tokens, usable)
                    coming = max(coming, shared)
                    if min(shared, other.computed) > ready:
                        donor, ready = index, min(shared, other.computed)
        if coming - ready >= _WORTH_WAITING_TOKENS:
            return False
        self._cache.reserve(row + 1, sequence.length)
        if donor is not None:
            self._cache.move(donor, row, ready)
        elif entry is not None:
            self._cache.insert(row, entry.prefix, ready)
        sequence.computed = ready
        self.running.append(sequence)
        return True

    def _spans(self) -> list[Span]:
        left = _PREFILL_TOKENS
        spans = []
        for sequence in self.running:
            count = sequence.length - sequence.computed
            if count > 1:
                # Never less than one token: the joint attention call wants a query of every row.
                count = max(1, min(count, left))
                left -= count
            stop = sequence.computed + count
            logits = Logits.LAST if stop == sequence.length else Logits.NONE
            if sequence.scores_prompt:
                logits = Logits.ALL
            tokens = sequence.tokens[sequence.computed : stop]
            spans.append(Span(sequence.adapter.slot, sequence.computed, tokens, logits))
        return spans
