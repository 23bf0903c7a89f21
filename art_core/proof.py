"""What an engine's answers show: which weights it serves, and whether it computes as the trainer does.

Pure functions; no room decides anything here. What the figures can and can't tell: in fp32 they separate the
right step from a stale one, the base or another step even at the smallest learning rate; in bf16 they prove
nothing positive (rounding of the adapter's weights is as large as the change of a step).

Whether the probe has power must not be read off the answers that are on trial: wrong weights also make parity and
standard error large, and would excuse themselves. `precision` and `expected_error` come from the previous step's
answers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from art_core.policy import Behaviour
from art_core.step import Probe

UNCHANGED_NATS = 1e-5
"""Mean change of the trainer's logprobs up to which the step changed nothing: fp32 noise (a step at a learning rate
of 5e-6 moves them by 1e-3)."""
STILL_NATS = 1e-4
"""Mean change of the engine's logprobs up to which it answers as before."""
AGREEMENT_NATS = {True: 0.01, False: 0.1}
"""Mean difference of engine's and trainer's logprobs that rounding explains, where both compute in float32 and where
one does not. Seen on a 135M model at temperature 1: float32 against float32 1e-5, float16 0.005, bfloat16 0.036; int8
weights 0.04, int4 weights 1.0, the weights with 2% of noise 0.14."""
ANOTHER_BASE_NATS = {True: 0.1, False: 2.0}
"""The same, beyond which another base model is the only explanation left. Where not all is float32 it is above what
four bits do: a quantised base and one that was trained further look alike below that."""


def behaviour(
    probe: Probe, engine_before: Sequence[NDArray[np.float32]], engine_after: Sequence[NDArray[np.float32]]
) -> Behaviour:
    """Slope of the engine's change on the trainer's change, over the probe's scored tokens.

    With x the trainer's change and y the engine's, per token, the line goes through the origin: both things that it
    tells apart, y = x (the step is served) and y = 0 (the previous one still is), do, and a token whose probability
    training left alone must not move in the engine either. A lasting difference between engine and trainer cancels
    in both changes.

        beta = sum(x·y) / sum(x²)      standard error = sqrt( sum((y - beta·x)²) / (n - 1) / sum(x²) )

    Where the right step is served y = x + d_after - d_before, with d the differences between engine and trainer;
    taking d_after for as large as d_before is, the slope's variance is expected to be 2·mean(d_before²) / sum(x²).

    Where the trainer's logprobs did not change there is no slope, and the question is yes or no: beta is 1 if the
    engine did not change either and 0 if it did, both errors are 0. With fewer than two tokens both are infinite.

    Args:
        probe: The step's probe: trainer's logprobs before and after.
        engine_before: Per sequence, T natural-log probabilities under the step that the probe's `before` is of.
        engine_after: The same under the step itself.

    Source: Eisenhauer 2003, "Regression through the Origin", Teaching Statistics 25(3), 76-80: slope and its
        standard error (one estimated parameter, hence n - 1 degrees of freedom).
    """
    trainer_before, trainer_after = _picked(probe.before, probe), _picked(probe.after, probe)
    before, after = _picked(engine_before, probe), _picked(engine_after, probe)
    x, y, n = trainer_after - trainer_before, after - before, trainer_after.size
    if n < 2:
        return Behaviour(0.0, math.inf, math.inf, math.inf, math.inf, n)
    gap = before - trainer_before
    parity, precision = _mean(after - trainer_after), _mean(gap)
    if _mean(x) <= UNCHANGED_NATS:
        still = _mean(y) <= max(STILL_NATS, 2 * precision)
        return Behaviour(float(still), 0.0, parity, precision, 0.0, n)
    power = float(x @ x)
    beta = float(x @ y) / power
    residual = y - beta * x
    error = math.sqrt(float(residual @ residual) / (n - 1) / power)
    expected = math.sqrt(2 * float(gap @ gap) / n / power)
    return Behaviour(beta, error, parity, precision, expected, n)


def disagreement(gap_nats: float, engine_dtype: str, trainer_dtype: str) -> str | None:
    """What to tell the user where engine and trainer compute different functions; None where rounding explains it.

    Args:
        gap_nats: Mean absolute difference of their logprobs on the same tokens under the same weights.
        engine_dtype: What the engine computes in.
        trainer_dtype: What the trainer computes in.
    """
    allowed = AGREEMENT_NATS[engine_dtype == trainer_dtype == "float32"]
    if gap_nats <= allowed:
        return None
    return (
        f"engine ({engine_dtype}) and trainer ({trainer_dtype}) compute different functions: with the same weights "
        f"their logprobs of the sampled tokens differ by {gap_nats:.3g} nats on average; rounding explains up to "
        f"{allowed:g}. Every step is off-policy by as much. Give both the same base model, quantised alike or not at "
        f"all; precalculate_logprobs=True with truncated_importance_sampling=2.0 bounds what the difference does"
    )


def another_base(gap_nats: float, engine_dtype: str, trainer_dtype: str) -> bool:
    """Whether a difference, as `disagreement` takes it, shows that engine and trainer hold different base models."""
    return gap_nats > ANOTHER_BASE_NATS[engine_dtype == trainer_dtype == "float32"]


def _mean(difference: NDArray[np.float64]) -> float:
    return float(np.abs(difference).mean())


def _picked(sequences: Sequence[NDArray[np.float32]], probe: Probe) -> NDArray[np.float64]:
    """The scored tokens of all sequences in one float64 array: differences of 1e-3 must keep their digits."""
    picked = [np.asarray(values, np.float64)[mask] for values, mask in zip(sequences, probe.scored, strict=True)]
    return np.concatenate(picked) if picked else np.zeros(0)
