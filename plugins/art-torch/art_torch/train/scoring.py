"""Logprobs of a batch's tokens under the weights that the model computes with now, without gradient."""

from __future__ import annotations

from threading import Event

import numpy as np
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_core.step import StepConfig
from art_torch.train.pass_model import PassModel, score_pass


class StepCancelledError(Exception):
    """The step ended between two passes because it was asked to; nothing has changed."""


def stop_if(cancelled: Event) -> None:
    """End the step where it is asked to.

    Raises:
        StepCancelledError: It is.
    """
    if cancelled.is_set():
        raise StepCancelledError


def score_tokens(
    model: PassModel,
    batch: TrainBatch,
    wanted_BT: NDArray[np.bool_],
    config: StepConfig,
    cancelled: Event | None = None,
) -> NDArray[np.float32]:
    """Score tokens in as many passes as they need.

    Args:
        model: The trainer's.
        batch: Its tokens, each at its own temperature.
        wanted_BT: Which of them; never the first of a row.
        config: How much goes into one forward pass.
        cancelled: Looked at before each pass.

    Returns:
        (B, T) logprobs; NaN where not wanted.

    Raises:
        StepCancelledError: `cancelled` was set.
    """
    logprobs_BT = np.full(wanted_BT.shape, np.nan, np.float32)
    for packed in model.passes(batch.tokens_BT, wanted_BT, batch.group_ids_B, config.microbatch_tokens):
        if cancelled is not None:
            stop_if(cancelled)
        logprobs_BT[packed.rows_N, packed.columns_N] = score_pass(
            model, packed, batch.tokens_BT, batch.temperatures_BT, config.logprob_chunk_tokens
        )
    return logprobs_BT
