"""One base model, one adapter, one optimizer, and the step that improves them. Synchronous; see `trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_core.adapter_file import refuse_pickles
from art_core.batch import TrainBatch
from art_core.errors import BatchError, NonFiniteLossError, OutOfMemoryError
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig, StepResult
from art_torch.base_model import LoadedBase
from art_torch.train.adapter import Adapter
from art_torch.train.head import score_with_gradient
from art_torch.train.loss import TokenLoss, policy_loss
from art_torch.train.metric import Tally
from art_torch.train.optimizer_state import Optimizer
from art_torch.train.packed_model import PackedModel
from art_torch.train.packing import Pass, pack, unpacked_tokens
from art_torch.train.probe import ProbeRows


class StepCancelledError(Exception):
    """The step ended between two passes because it was asked to; nothing has changed."""


class Learner:
    """Holds everything a trainer holds, and changes it only whole: a step that raises changes nothing."""

    def __init__(self, base: LoadedBase, spec: TrainerSpec, gradient_checkpointing: bool) -> None:
        """Prepare a loaded base model for training, with a fresh adapter.

        Args:
            base: Changed in place.
            spec: Adapter shape and names.
            gradient_checkpointing: Recompute each layer in the backward pass.

        Raises:
            ConfigError: A LoRA target matches nothing, or the architecture can't be trained in packed passes.
        """
        self.info = base.info
        self._model = PackedModel(base, gradient_checkpointing)
        self._adapter = Adapter(base.model, spec.lora, spec.base_model)
        self._optimizer = Optimizer(self._adapter.parameters)

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
        """Make one optimizer step; none where the batch has no usable advantage.

        Args:
            batch: What to learn from.
            config: How.
            cancelled: Looked at before each pass and before the update; from then on the step is finished.

        Raises:
            BatchError: The batch does not fit the model.
            NonFiniteLossError: Loss, gradient or updated weights are not finite.
            OutOfMemoryError: It did not fit in memory.
            StepCancelledError: `cancelled` was set in time.
        """
        self._check(batch)
        with _memory_errors(batch, config):
            rows = ProbeRows.choose(batch)
            if not batch.usable:
                before = rows.score(self._model, config.microbatch_tokens)
                return StepResult(_idle_metrics(batch), rows.probe(before, before), updated=False)
            try:
                metrics, logprobs_BT = self._accumulate(batch, config, cancelled)
                before = self._before(rows, logprobs_BT, config)
                _stop_if(cancelled)
                with self._restored_on_error():
                    self._optimizer.update(config)
                    self._require_finite_weights(config)
                    after = rows.score(self._model, config.microbatch_tokens)
            finally:
                self._optimizer.clear_gradients()
        return StepResult(metrics, rows.probe(before, after), updated=True)

    def _check(self, batch: TrainBatch) -> None:
        T = batch.tokens_BT.shape[1]
        longest, limit = int(batch.lengths_B.max()), self.info.context_tokens
        if longest > limit:
            row = int(batch.lengths_B.argmax())
            raise BatchError(f"sequence {row} has {longest} tokens; the context of this base model is {limit}")
        if longest > T or int(batch.lengths_B.min()) < 1:
            raise BatchError(f"lengths are {batch.lengths_B.min()} to {longest}; allowed: 1 to {T}, the padded length")
        present_BT = np.arange(T) < batch.lengths_B[:, None]
        if (batch.loss_mask_BT & ~present_BT).any():
            raise BatchError("the loss mask covers padding; only tokens within a sequence's length can be sampled")
        wrong_BT = present_BT & ((batch.tokens_BT < 0) | (batch.tokens_BT >= self.info.vocab_size))
        if wrong_BT.any():
            row, column = np.argwhere(wrong_BT)[0].tolist()
            raise BatchError(
                f"token {column} of sequence {row} is {batch.tokens_BT[row, column]}; "
                f"allowed: 0 to {self.info.vocab_size - 1}, this base model's vocabulary"
            )

    def _before(
        self, rows: ProbeRows, logprobs_BT: NDArray[np.float32], config: StepConfig
    ) -> tuple[NDArray[np.float32], ...]:
        # In half precision two passes of another shape differ by more than a step moves a logprob: there the probe is
        # scored before the update in the same pass as after it. In float32 the training passes' logprobs will do.
        seen = rows.seen(logprobs_BT) if self.info.dtype == "float32" else None
        return rows.score(self._model, config.microbatch_tokens) if seen is None else seen

    def _accumulate(
        self, batch: TrainBatch, config: StepConfig, cancelled: Event
    ) -> tuple[dict[str, float], NDArray[np.float32]]:
        """Gradients of the whole batch, clipped; gives what was measured on the way, and the logprobs."""
        trained_B = (batch.advantages_BT * batch.loss_mask_BT != 0).any(axis=1)
        scored_BT = batch.loss_mask_BT & trained_B[:, None]
        passes = pack(batch.tokens_BT, scored_BT, batch.group_ids_B, config.microbatch_tokens)
        tally = Tally(np.full(batch.tokens_BT.shape, np.nan, np.float32))
        for packed in passes:
            _stop_if(cancelled)
            self._backward(packed, batch, config, tally)
            _require_finite("loss", tally.loss, config)
        parameters = list(self._adapter.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        _require_finite("gradient norm", norm, config)
        metrics = {
            "loss/grad_norm": norm,
            "loss/learning_rate": config.learning_rate,
            "data/step_trainable_tokens": float(batch.loss_tokens),
            "data/step_packed_tokens": float(sum(len(packed.tokens_L) for packed in passes)),
            "data/step_unpacked_tokens": float(unpacked_tokens(scored_BT)),
        }
        return tally.metrics() | metrics, tally.logprobs_BT

    def _backward(self, packed: Pass, batch: TrainBatch, config: StepConfig, tally: Tally) -> None:
        """Add one pass's share of the gradient."""
        where = (packed.rows_N, packed.columns_N)
        targets_N = self._model.to_device(batch.tokens_BT[where]).long()
        temperatures_N = self._model.to_device(batch.temperatures_BT[where])
        old_logprobs_N = self._model.to_device(batch.logprobs_BT[where])
        advantages_N = self._model.to_device(batch.advantages_BT[where])
        losses: list[TokenLoss] = []

        def slope(part: slice, logprobs_N: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf_N = logprobs_N.detach().requires_grad_()
                losses.append(policy_loss(leaf_N, old_logprobs_N[part], advantages_N[part], config))
                loss = losses[-1].loss_N.sum() / batch.loss_tokens
            tally.loss += float(loss)
            return torch.autograd.grad(loss, leaf_N)[0]

        hidden_ND = self._model.hidden(packed)
        scores, gradient_ND = score_with_gradient(self._model.head, hidden_ND, targets_N, temperatures_N, slope)
        torch.autograd.backward(hidden_ND, gradient_ND)
        tally.add(packed, scores, old_logprobs_N, losses)

    def _require_finite_weights(self, config: StepConfig) -> None:
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._adapter.parameters.values())
        _require_finite("largest updated weight", 0.0 if finite else math.inf, config)

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Put weights and optimizer back, bit for bit, where the block raises."""
        live = [*(p.data for p in self._adapter.parameters.values()), *self._optimizer.tensors().values()]
        kept = [tensor.clone() for tensor in live]
        try:
            yield
        except BaseException:
            for tensor, copy in zip(live, kept, strict=True):
                tensor.copy_(copy)
            raise


def _idle_metrics(batch: TrainBatch) -> dict[str, float]:
    """Of a step that had nothing to learn: no pass, so nothing was measured on tokens."""
    return {
        "loss/train": 0.0,
        "loss/grad_norm": 0.0,
        "loss/learning_rate": 0.0,
        "data/step_trainable_tokens": float(batch.loss_tokens),
        "data/step_packed_tokens": 0.0,
        "data/step_unpacked_tokens": 0.0,
    }


def _stop_if(cancelled: Event) -> None:
    if cancelled.is_set():
        raise StepCancelledError


def _require_finite(what: str, value: float, config: StepConfig) -> None:
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"{what} is {value}; weights and optimizer are as they were; lower learning_rate "
            f"(now {config.learning_rate:g}) or resume from an earlier step",
            stage="train",
        )


@contextmanager
def _memory_errors(batch: TrainBatch, config: StepConfig) -> Iterator[None]:
    """Turn the ways in which torch says that memory ran out into one error that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error)
        # torch's CPU allocator raises a plain RuntimeError, in one of these two wordings.
        plain = type(error) is RuntimeError and ("can't allocate memory" in told or "not enough memory" in told)
        if not (plain or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        raise OutOfMemoryError(
            f"the step did not fit in memory: {told.strip().splitlines()[0] if told else 'no memory'}; lower "
            f"microbatch_tokens (now {config.microbatch_tokens}; the longest sequence has {batch.lengths_B.max()}), or "
            "set the trainer's option gradient_checkpointing",
            stage="train",
        ) from error
