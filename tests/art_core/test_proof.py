"""The slope of the engine's change on the trainer's: the figures themselves, and what they say of each failure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from art_core.proof import behaviour, disagreement
from art_core.step import Probe

Array = NDArray[np.float32]


def probe_of(before: list[Array], after: list[Array]) -> Probe:
    """A probe in which every token but the first of each sequence is scored."""
    scored = tuple(np.arange(len(each)) > 0 for each in before)
    tokens = tuple(np.arange(len(each), dtype=np.int32) for each in before)
    return Probe(tokens, scored, tuple(before), tuple(after))


def logprobs(rng: np.random.Generator, scale: float, around: list[Array] | None = None) -> list[Array]:
    """Two sequences of 33 and 32 tokens, at random, or `around` moved by `scale` nats per token."""
    start = around or [np.full(33, -2.0), np.full(32, -2.0)]
    return [(each + rng.normal(0, scale, len(each))).astype(np.float32) for each in start]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_slope_and_error_are_least_squares_through_the_origin(rng: np.random.Generator) -> None:
    """Against numpy's own solver in float64; the standard error from the textbook's covariance matrix."""
    before = logprobs(rng, 1.0)
    after, engine_before, engine_after = (logprobs(rng, 0.1, before) for _ in range(3))
    seen = behaviour(probe_of(before, after), engine_before, engine_after)

    picked = [np.concatenate([each[1:] for each in values]).astype(np.float64) for values in
              (before, after, engine_before, engine_after)]  # fmt: skip
    x, y = picked[1] - picked[0], picked[3] - picked[2]
    (beta,), (rest,), _, _ = np.linalg.lstsq(x[:, None], y, rcond=None)
    covariance = rest / (len(x) - 1) * np.linalg.inv(x[:, None].T @ x[:, None])
    assert seen.tokens == len(x) == 63
    assert seen.beta == pytest.approx(beta, rel=1e-12)
    assert seen.standard_error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)
    assert seen.parity == pytest.approx(np.abs(picked[3] - picked[1]).mean(), rel=1e-12)
    assert seen.precision == pytest.approx(np.abs(picked[2] - picked[0]).mean(), rel=1e-12)


def test_the_standard_error_is_how_far_the_slope_scatters(rng: np.random.Generator) -> None:
    """Over 2000 draws of fresh engine noise; the error expected beforehand says the same."""
    before = logprobs(rng, 1.0)
    probe = probe_of(before, logprobs(rng, 0.02, before))
    seen = [
        behaviour(probe, logprobs(rng, 0.01, list(probe.before)), logprobs(rng, 0.01, list(probe.after)))
        for _ in range(2000)
    ]
    scatter = np.std([each.beta for each in seen])
    assert np.mean([each.beta for each in seen]) == pytest.approx(1.0, abs=0.01)
    assert np.mean([each.standard_error for each in seen]) == pytest.approx(scatter, rel=0.06)
    assert np.mean([each.expected_error for each in seen]) == pytest.approx(scatter, rel=0.06)


@pytest.mark.parametrize("change", [0.0012, 0.023])
def test_in_full_precision_every_wrong_step_is_told_from_the_right_one(rng: np.random.Generator, change: float) -> None:
    """Changes as measured at learning rates 5e-6 and 1e-4, engine noise as in fp32."""
    base = logprobs(rng, 1.0)
    other = logprobs(rng, change, base)
    before = logprobs(rng, change, other)
    after = logprobs(rng, change, before)
    probe = probe_of(before, after)

    def serving(weights: list[Array]) -> tuple[float, float]:
        seen = behaviour(probe, logprobs(rng, 7e-6, before), logprobs(rng, 7e-6, weights))
        assert seen.precision < 1e-5
        assert seen.expected_error < 0.002
        return seen.beta, seen.standard_error

    beta, error = serving(after)
    assert abs(beta - 1) < 0.01
    assert error < 0.01
    beta, error = serving(before)
    assert abs(beta) < 0.01
    for wrong in (base, other):
        beta, error = serving(wrong)
        assert abs(beta - 1) > 0.2 or error > 0.2


def test_wrong_weights_do_not_excuse_themselves_as_lack_of_power(rng: np.random.Generator) -> None:
    before = logprobs(rng, 1.0)
    probe = probe_of(before, logprobs(rng, 0.02, before))
    seen = behaviour(probe, list(probe.before), logprobs(rng, 1.0))
    assert seen.parity > 0.1
    assert seen.standard_error > 0.1
    assert seen.precision == seen.expected_error == 0.0


def test_in_half_precision_the_probe_says_that_it_has_no_power(rng: np.random.Generator) -> None:
    before = logprobs(rng, 1.0)
    probe = probe_of(before, logprobs(rng, 0.0012, before))
    seen = behaviour(probe, logprobs(rng, 0.05, before), logprobs(rng, 0.05, list(probe.after)))
    assert seen.expected_error > 1
    assert seen.precision > 0.01


def test_a_step_that_changed_nothing_must_answer_alike(rng: np.random.Generator) -> None:
    before = logprobs(rng, 1.0)
    probe = probe_of(before, [each + np.float32(1e-6) for each in before])
    noise = logprobs(rng, 7e-6, before)
    alike = behaviour(probe, noise, logprobs(rng, 7e-6, before))
    assert (alike.beta, alike.standard_error, alike.expected_error) == (1.0, 0.0, 0.0)
    moved = behaviour(probe, noise, logprobs(rng, 1.2e-3, before))
    assert (moved.beta, moved.standard_error, moved.expected_error) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_probe_of_fewer_than_two_tokens_proves_nothing(tokens: int) -> None:
    before, after = [np.zeros(tokens + 1, np.float32)], [np.full(tokens + 1, -0.1, np.float32)]
    seen = behaviour(probe_of(before, after), before, after)
    assert seen.tokens == tokens
    assert math.isinf(seen.standard_error)
    assert math.isinf(seen.expected_error)


def test_tokens_that_are_not_scored_do_not_count(rng: np.random.Generator) -> None:
    before = logprobs(rng, 1.0)
    probe = probe_of(before, logprobs(rng, 0.02, before))
    engine = [each.copy() for each in probe.after]
    expected = behaviour(probe, before, engine)
    for each in engine:
        each[0] = -100.0
    assert behaviour(probe, before, engine) == expected
    assert expected.beta == 1.0


@pytest.mark.parametrize(
    ("gap", "engine", "trainer", "told"),
    [
        (0.009, "float32", "float32", False),
        (0.011, "float32", "float32", True),
        (0.09, "bfloat16", "float32", False),
        (0.09, "bfloat16", "bfloat16", False),
        (0.11, "bfloat16", "float32", True),
        (0.11, "float32", "float16", True),
    ],
)
def test_engine_and_trainer_may_differ_by_what_rounding_explains(
    gap: float, engine: str, trainer: str, told: bool
) -> None:
    said = disagreement(gap, engine, trainer)
    assert (said is not None) == told
    if said is not None:
        assert f"engine ({engine}) and trainer ({trainer}) compute different functions" in said and f"{gap:g}" in said
