"""The thread that owns the model: takes sequences in, runs passes, hands updates back to the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

import torch

from art_torch.serve.adapter_table import Adapter
from art_torch.serve.model_runner import Logits, ModelRunner, Span
from art_torch.serve.sampler import sample, score
from art_torch.serve.scheduler import Scheduler
from art_torch.serve.sequence import Sequence, Update

_log = logging.getLogger("art.engine")


class ModelThread:
    """Runs the scheduler's passes one after another while there is anything to compute."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, release: Callable[[Adapter], None], cpu_threads: int | None
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._release = release
        self._cpu_threads = cpu_threads
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="art-model", daemon=True)
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start; updates are put on their sequences' queues in that event loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End after the pass under way; what still runs gets no more updates."""
        self.post(self._stop)
        self._thread.join()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. It ends with an update that has a finish reason or an error, unless cancelled."""
        self.post(lambda: self._scheduler.add(sequence))

    def post(self, action: Callable[[], None]) -> None:
        """Have something done on this thread between two passes; also wakes it, e.g. after a cancellation."""
        self._inbox.put(action)

    @property
    def running(self) -> int:
        """Sequences running or waiting, roughly."""
        return len(self._scheduler.running) + len(self._scheduler.waiting)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        if self._cpu_threads is not None:
            torch.set_num_threads(self._cpu_threads)
        with torch.inference_mode():
            while not self._stopping:
                self._take_in()
                for sequence in self._scheduler.drop_cancelled():
                    self._release(sequence.adapter)
                if self._scheduler.running or self._scheduler.waiting:
                    self._guarded_pass()

    def _take_in(self) -> None:
        idle = not (self._scheduler.running or self._scheduler.waiting)
        while idle or not self._inbox.empty():
            self._inbox.get()()
            idle = False

    def _guarded_pass(self) -> None:
        try:
            self._send(self._pass())
        except Exception as error:  # noqa: BLE001 - whatever a library raises there, the requests are told
            _log.exception("a forward pass failed; %d sequences are given up", self.running)
            gone = self._scheduler.clear()
            for sequence in gone:
                self._release(sequence.adapter)
            self._send([Update(sequence, error=f"{type(error).__name__}: {error}") for sequence in gone])

    def _pass(self) -> list[Update]:
        spans = self._scheduler.plan()
        sequences = list(self._scheduler.running)
        logits_KV = self._runner.forward(spans)
        self._scheduler.computed(spans)
        sampling, rows, updates, first = [], [], [], 0
        for sequence, span in zip(sequences, spans, strict=True):
            stop = first + span.logits_wanted
            if span.logits is Logits.ALL:
                _score_prompt(sequence, span, logits_KV[first:stop])
            if sequence.computed == sequence.length and sequence.sampling.max_tokens == 0:
                updates.append(self._advance(sequence, "length"))
            elif sequence.computed == sequence.length:
                sampling.append(sequence)
                rows.append(stop - 1)
            first = stop
        if sampling:
            for sequence, token in zip(sampling, sample(logits_KV[rows], sampling), strict=True):
                updates.append(self._advance(sequence, sequence.append(token)))
        return [update for update in updates if update is not None]

    def _advance(self, sequence: Sequence, finish_reason: str | None) -> Update | None:
        """Take a finished sequence out; returns what is to be told of it now."""
        if finish_reason is not None:
            self._scheduler.remove(sequence)
            self._release(sequence.adapter)
        return sequence.update(finish_reason) if finish_reason is not None or sequence.streams else None

    def _send(self, updates: list[Update]) -> None:
        if updates and self._loop is not None:
            self._loop.call_soon_threadsafe(_deliver, updates)


def _score_prompt(sequence: Sequence, span: Span, logits_TV: torch.Tensor) -> None:
    scored = sequence.prompt[span.start + 1 : span.start + 1 + len(span.tokens)].tolist()
    top = sequence.sampling.prompt_logprobs or 0
    # Assigned from its place on: a sequence that was preempted comes here again.
    sequence.prompt_scored[span.start :] = score(logits_TV[: len(scored)], scored, top)


def _deliver(updates: list[Update]) -> None:
    for update in updates:
        update.sequence.queue.put_nowait(update)
