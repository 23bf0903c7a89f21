"""One base model, one adapter, one optimizer, and the step that improves them. Synchronous; see `trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_core.adapter_file import refuse_pickles
from art_core.batch import TrainBatch
from art_core.errors import OutOfMemoryError
from art_core.step import StepConfig, StepResult
from art_torch.train.admission import require_fit
from art_torch.train.failure import memory_errors, require_finite
from art_torch.train.low_rank import LowRank
from art_torch.train.metric import Tally, idle_metrics
from art_torch.train.objective import Objective, objectives
from art_torch.train.optimizer_state import Optimizer
from art_torch.train.packing import unpacked_tokens
from art_torch.train.pass_model import Trainable
from art_torch.train.probe import ProbeRows
from art_torch.train.reference import read_reference
from art_torch.train.residence import Residence
from art_torch.train.scoring import score_tokens, stop_if
from art_torch.train.signal import Signal, make_signal


class Learner:
    """Holds everything a trainer holds, and changes it only whole: a step that raises changes nothing."""

    def __init__(self, built: Trainable) -> None:
        """Take over a base model with an adapter in it.

        Args:
            built: The adapter is made equal to the base.
        """
        self.info = built.info
        self._model = built.model
        self._adapter = built.adapter
        self._optimizer = Optimizer(built.adapter.parameters)
        self._residence = Residence(built.frozen, self._changing)

    @property
    def offloaded(self) -> bool:
        """Whether a step must wait for `onload`."""
        return self._residence.away

    def offload(self) -> None:
        """Move base, adapter and optimizer to host memory; idempotent."""
        self._residence.leave()

    def onload(self) -> None:
        """Move all of it back, bit for bit; idempotent.

        Raises:
            OutOfMemoryError: A device is full; the trainer stays offloaded.
        """
        try:
            self._residence.enter()
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the trainer does not fit on its device: {error}; free memory there and call onload again",
                stage="train",
            ) from error

    def reset(self, resume_from: Path | None) -> None:
        """Set weights and optimizer to a saved state, or to a fresh adapter.

        Raises:
            CheckpointCorruptError: The files don't fit; weights and optimizer are as before.
        """
        if resume_from is None:
            self._adapter.reset()
            self._optimizer.reset()
            return
        refuse_pickles(resume_from)
        weights = self._adapter.read(resume_from)
        state = self._optimizer.read(resume_from)
        self._adapter.load(weights)
        if state is None:
            self._optimizer.reset()
        else:
            self._optimizer.load(state)

    def files(self) -> dict[str, bytes]:
        """What a checkpoint needs, by file name."""
        return self._adapter.files() | self._optimizer.files()

    def step(self, batch: TrainBatch, config: StepConfig, cancelled: Event) -> StepResult:
        """Improve the adapter by one batch; it stays as it is where nothing in the batch has an advantage.

        Args:
            batch: What to learn from.
            config: How.
            cancelled: Looked at before each pass and each update; from the last update on the step is finished.

        Raises:
            BatchError: The batch does not fit the model.
            CheckpointCorruptError: The reference adapter's files are damaged.
            ConfigError: The reference adapter does not fit the trained one.
            NonFiniteLossError: Loss, gradient or updated weights are not finite.
            OutOfMemoryError: It did not fit in memory.
            StepCancelledError: `cancelled` was set in time.
        """
        require_fit(batch, config, self.info)
        reference = self._reference(config)
        with memory_errors(batch, config):
            signal = self._signal(batch, config, reference, cancelled)
            rows = ProbeRows.choose(batch, signal.trained_B)
            updates = list(objectives(batch, signal, config))
            if not updates:
                before = rows.score(self._model, config)
                return StepResult(idle_metrics(batch) | signal.metrics, rows.probe(before, before), updated=False)
            return self._learn(updates, rows, cancelled)

    def _reference(self, config: StepConfig) -> Mapping[str, LowRank]:
        if config.kl_penalty_coef == 0 or config.kl_ref_adapter_path is None:
            return {}
        return read_reference(Path(config.kl_ref_adapter_path), self._adapter.sites, self._adapter.devices)

    def _signal(
        self, batch: TrainBatch, config: StepConfig, reference: Mapping[str, LowRank], cancelled: Event
    ) -> Signal:
        own = partial(score_tokens, self._model, batch, config=config, cancelled=cancelled)

        def referred(wanted_BT: NDArray[np.bool_]) -> NDArray[np.float32]:
            with self._adapter.replaced(reference):
                return own(wanted_BT)

        return make_signal(batch, config, own, referred)

    def _learn(self, updates: list[Objective], rows: ProbeRows, cancelled: Event) -> StepResult:
        """Make the updates, all or none."""
        batch, signal, config = updates[0].batch, updates[0].signal, updates[0].config
        tally = Tally(signal.own_logprobs_BT.copy())
        before = self._before(rows, signal.own_logprobs_BT, config) if len(updates) > 1 else None
        packed_tokens = 0
        try:
            with self._restored_on_error():
                for objective in updates:
                    packed_tokens += self._accumulate(objective, tally, cancelled)
                    if before is None:
                        before = self._before(rows, tally.own_logprobs_BT, config)
                    stop_if(cancelled)
                    self._update(objective, tally)
                after = rows.score(self._model, config)
        finally:
            self._optimizer.clear_gradients()
        assert before is not None
        metrics = tally.metrics(batch) | {
            "data/step_trainable_tokens": float(batch.loss_tokens),
            "data/step_packed_tokens": float(packed_tokens),
            "data/step_unpacked_tokens": float(sum(unpacked_tokens(each.scored_BT) for each in updates)),
        }
        return StepResult(metrics | signal.metrics, rows.probe(before, after), updated=True)

    def _accumulate(self, objective: Objective, tally: Tally, cancelled: Event) -> int:
        """Gradient of one update; gives the number of tokens that went through the model."""
        self._optimizer.clear_gradients()
        passes = objective.passes(self._model)
        for packed in passes:
            stop_if(cancelled)
            objective.backward(self._model, packed, tally)
            require_finite("loss", tally.loss_sum, objective.config)
        return sum(len(packed.tokens_L) for packed in passes)

    def _update(self, objective: Objective, tally: Tally) -> None:
        config = objective.config
        parameters = list(self._adapter.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        require_finite("gradient norm", norm, config)
        self._optimizer.update(config, objective.learning_rate)
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
        require_finite("largest updated weight", 0.0 if finite else math.inf, config)
        tally.updated(norm, objective.learning_rate)

    def _before(
        self, rows: ProbeRows, logprobs_BT: NDArray[np.float32], config: StepConfig
    ) -> tuple[NDArray[np.float32], ...]:
        # In half precision two passes of another shape differ by more than a step moves a logprob: there the probe is
        # scored before the update in the same pass as after it. In float32 the training passes' logprobs will do.
        seen = rows.seen(logprobs_BT) if self.info.dtype == "float32" else None
        return rows.score(self._model, config) if seen is None else seen

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Put weights and optimizer back, bit for bit, where the block raises."""
        live = self._changing()
        kept = [tensor.detach().clone() for tensor in live]
        try:
            yield
        except BaseException:
            for tensor, copy in zip(live, kept, strict=True):
                tensor.data.copy_(copy)
            raise

    def _changing(self) -> list[Tensor]:
        """What training changes: the adapter and the optimizer's state."""
        return [*self._adapter.parameters.values(), *self._optimizer.tensors().values()]
