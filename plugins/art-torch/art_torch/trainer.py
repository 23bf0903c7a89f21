"""The torch trainer: the contract's calls, each run in the trainer's own thread. The work itself is in `learner`."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TypeVar

import torch

from art_core import disk
from art_core.batch import TrainBatch
from art_core.capability import Capabilities, Capability
from art_core.errors import ArtError, CheckpointError, ConfigError, TrainerError, TrainerStartError
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import StepConfig, StepResult
from art_torch.base_model import load_base
from art_torch.options import TorchTrainerOptions
from art_torch.train.learner import Learner

_log = logging.getLogger("art.trainer")
_DISTRIBUTIONS = ("art-torch", "torch", "transformers", "peft")
_R = TypeVar("_R")


class TorchTrainer:
    """Trains a LoRA adapter with PyTorch; see `art_core.protocols.trainer` for what each call promises."""

    def __init__(self, options: TorchTrainerOptions) -> None:
        self._options = options
        self._spec: TrainerSpec | None = None
        self._learner: Learner | None = None
        self._ready = False
        self._cancelled = Event()
        # One thread for all calls: they can't overlap, and torch keeps a pool of workers for every thread it is
        # called from.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="art-trainer")

    async def start(self, spec: TrainerSpec, resume_from: Path | None) -> TrainerInfo:
        """Load the base model, unless the same spec is loaded already, and set weights and optimizer."""
        return await self._in_thread(lambda: self._start(spec, resume_from))

    async def step(self, batch: TrainBatch, config: StepConfig) -> StepResult:
        """Make one optimizer step; none where the batch has no usable advantage."""
        learner = self._started()
        return await self._in_thread(lambda: learner.step(batch, config, self._cancelled))

    async def save(self, directory: Path) -> None:
        """Write adapter_config.json, adapter_model.safetensors and optimizer.safetensors."""
        learner = self._started()
        await self._in_thread(lambda: _write(learner, directory))

    async def offload(self) -> None:
        """Refused: not declared."""
        Capabilities().require(Capability.OFFLOAD, "trainer 'torch'")

    async def onload(self) -> None:
        """Refused: not declared."""
        Capabilities().require(Capability.OFFLOAD, "trainer 'torch'")

    async def stop(self) -> None:
        """Free everything; idempotent. The trainer can be started again."""
        await self._in_thread(self._release)

    def _started(self) -> Learner:
        if self._learner is None or not self._ready:
            raise TrainerError(
                "trainer 'torch' is not started, or its last start failed; call start first", stage="train"
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
                self._learner = self._load(spec)
                self._spec = spec
            self._learner.reset(resume_from)
        except ArtError:
            raise
        except Exception as error:
            raise TrainerStartError(f"trainer 'torch' did not start with {spec.base_model!r}: {error}") from error
        self._ready = True
        return TrainerInfo(self._learner.info, {name: version(name) for name in _DISTRIBUTIONS})

    def _load(self, spec: TrainerSpec) -> Learner:
        if self._options.cpu_threads is not None:
            torch.set_num_threads(self._options.cpu_threads)
        if spec.device_ids is not None:
            if len(spec.device_ids) != 1 or not torch.cuda.is_available():
                raise ConfigError(
                    f"trainer_gpu_ids are {list(spec.device_ids)}; trainer 'torch' uses one GPU, "
                    f"and torch sees {torch.cuda.device_count()}"
                )
            torch.cuda.set_device(spec.device_ids[0])
        base = load_base(spec.base_model, self._options.device, self._options.dtype, spec.chat_template)
        return Learner(base, spec, self._options.gradient_checkpointing)

    def _release(self) -> None:
        self._learner = self._spec = None
        self._ready = False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _write(learner: Learner, directory: Path) -> None:
    for name, content in learner.files().items():
        path = directory / name
        try:
            path.write_bytes(content)
        except OSError as error:
            raise CheckpointError(
                f"{path} can't be written: {error.strerror}; {disk.advice(error)} and try again", stage="save"
            ) from error
