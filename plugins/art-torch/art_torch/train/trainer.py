"""The trainer's contract over a `Learner`: calls, thread, errors. Libraries differ in how they build what it trains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from art_core import disk
from art_core.batch import TrainBatch
from art_core.errors import ArtError, CheckpointError, TrainerError, TrainerStartError
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import StepConfig, StepResult
from art_core.supervised import EncodedChat, EncodeRequest
from art_torch.train.chat_encoder import ChatEncoder
from art_torch.train.learner import Learner
from art_torch.train.pass_model import Trainable
from art_torch.train.residence import free_cached

_log = logging.getLogger("art.trainer")
_R = TypeVar("_R")


class LearnerTrainer:
    """Trains a LoRA adapter with PyTorch; see `art_core.protocols.trainer` for what each call promises."""

    def __init__(self, name: str, build: Callable[[TrainerSpec], Trainable], distributions: Sequence[str]) -> None:
        """Nothing is loaded yet.

        Args:
            name: The part's.
            build: Loads the base model of a spec and puts a fresh adapter into it. Called in the trainer's thread.
            distributions: Whose versions are recorded in every manifest.
        """
        self._name = name
        self._build = build
        self._distributions = distributions
        self._spec: TrainerSpec | None = None
        self._learner: Learner | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._encoder: ChatEncoder | None = None
        self._ready = False
        self._cancelled = Event()
        # One thread for all calls: they can't overlap, and torch keeps a pool of workers for every thread it is
        # called from.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="art-trainer")

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Load the base model, unless the same spec is loaded already, and set weights and optimizer."""
        return await self._in_thread(lambda: self._start(spec, resume_from))

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """Make a step; it updates nothing where the batch has no usable advantage."""
        learner = self._started()
        if learner.offloaded:
            raise TrainerError(
                f"trainer {self._name!r} has given its device memory back; call onload before step", stage="train"
            )
        return await self._in_thread(lambda: learner.step(batch, config, self._cancelled))

    async def encode(self, request: EncodeRequest) -> Sequence[EncodedChat]:
        """Turn chats into tokens by the base model's tokenizer and chat template."""
        self._started()
        return await self._in_thread(lambda: self._encode(request))

    async def save(self, directory: Path) -> None:
        """Write adapter_config.json, adapter_model.safetensors and optimizer.safetensors."""
        learner = self._started()
        await self._in_thread(lambda: _write(learner, directory))

    async def offload(self) -> None:
        """Move base, adapter and optimizer to host memory."""
        learner = self._started()
        await self._in_thread(learner.offload)

    async def onload(self) -> None:
        """Move them back."""
        learner = self._started()
        await self._in_thread(learner.onload)

    async def stop(self) -> None:
        """Free everything; idempotent. The trainer can be started again."""
        await self._in_thread(self._release)

    def _started(self) -> Learner:
        if self._learner is None or not self._ready:
            raise TrainerError(
                f"trainer {self._name!r} is not started, or its last start failed; call start first", stage="train"
            )
        return self._learner

    async def _in_thread(self, work: Callable[[], _R]) -> _R:
        """Run in the trainer's thread. Cancelled, it waits until the work has ended, however often it is cancelled."""
        self._cancelled.clear()
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._cancelled.set()
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if (error := future.exception()) is not None:
                _log.info("the cancelled call ended: %s", error or type(error).__name__)
            raise

    def _start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        self._ready = False
        try:
            if self._learner is None or spec != self._spec:
                self._release()
                made = self._build(spec)
                self._learner, self._tokenizer, self._spec = Learner(made), made.tokenizer, spec
            self._learner.onload()
            self._learner.reset(resume_from)
        except ArtError:
            raise
        except Exception as error:
            raise TrainerStartError(
                f"trainer {self._name!r} did not start with {spec.base_model!r}: {error}"
            ) from error
        self._ready = True
        return TrainerInfo(self._learner.info, {name: version(name) for name in self._distributions})

    def _encode(self, request: EncodeRequest) -> Sequence[EncodedChat]:
        assert self._tokenizer is not None
        if self._encoder is None:
            self._encoder = ChatEncoder(self._tokenizer)
        return self._encoder.encode(request)

    def _release(self) -> None:
        self._learner = self._spec = self._tokenizer = self._encoder = None
        self._ready = False
        free_cached()


def _write(learner: Learner, directory: Path) -> None:
    for name, content in learner.files().items():
        path = directory / name
        try:
            path.write_bytes(content)
        except OSError as error:
            raise CheckpointError(
                f"{path} can't be written: {error.strerror}; {disk.advice(error)} and try again", stage="save"
            ) from error
