"""Sampling: frequencies, truncation, seeds, minimum length."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.serve.sampler import sample
from art_torch.serve.sequence import Sampling, Sequence

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def sequence(seed: int, **sampling: Any) -> Sequence:
    made = Sequence([0], Sampling(**{"max_tokens": 8, "seed": seed, **sampling}), None, asyncio.Queue(), None)  # type: ignore[arg-type]
    made.seed(0)
    return made


def draw(count: int, **sampling: Any) -> np.ndarray:
    rows = [sequence(seed, **sampling) for seed in range(count)]
    return np.array([token.token for token in sample(LOGITS.repeat(count, 1), rows)])


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    count = 4_000
    seen = np.bincount(draw(count, temperature=temperature), minlength=5)
    expected = (LOGITS / temperature).softmax(-1).numpy() * count
    assert ((seen - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    # Probabilities, best first: token 4 0.64, 0 0.23, 1 0.09, 2 0.03, 3 0.01.
    assert set(draw(300, top_p=0.5)) == {4}
    assert set(draw(300, top_p=0.7)) == {4, 0}
    assert set(draw(600, top_p=0.9)) == {4, 0, 1}
    seen = np.bincount(draw(4_000, top_p=0.7), minlength=5)
    assert seen[4] / seen.sum() == pytest.approx(0.636 / (0.636 + 0.234), abs=0.03)


def test_top_k_keeps_the_likeliest() -> None:
    assert set(draw(300, top_k=1)) == {4}
    assert set(draw(600, top_k=2)) == {4, 0}
    assert set(draw(600, top_k=3, top_p=0.7)) == {4, 0}
    assert set(draw(2_000, top_k=99)) == {0, 1, 2, 3, 4}


def test_logprobs_are_before_truncation() -> None:
    (token,) = sample(LOGITS[None].clone(), [sequence(0, top_k=1, temperature=0.5, logprobs=2)])
    row = (LOGITS / 0.5).log_softmax(-1)
    assert token.logprob == pytest.approx(float(row[4]), abs=1e-6)
    assert token.top == ((4, pytest.approx(float(row[4]))), (0, pytest.approx(float(row[0]))))


def test_greedy_logprobs_are_at_temperature_one() -> None:
    (token,) = sample(LOGITS[None].clone(), [sequence(0, temperature=0.0)])
    assert token.token == 4 and token.logprob == pytest.approx(float(LOGITS.log_softmax(-1)[4]), abs=1e-6)


def test_rows_of_every_kind_in_one_call() -> None:
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 1}, {"logprobs": 5}, {}]
    rows = [sequence(5, **kind) for kind in kinds]
    together = sample(LOGITS.repeat(5, 1), rows)
    alone = [sample(LOGITS[None].clone(), [sequence(5, **kind)])[0] for kind in kinds]
    assert together == alone
    assert [token.token for token in together[:3]] == [4, 4, 4]
    assert len(together[3].top) == 5 and together[4].top == ()


def test_min_tokens_hold_back_the_end() -> None:
    early = sequence(0, temperature=0.0, min_tokens=1, stop_token_ids=frozenset({4}))
    (token,) = sample(LOGITS[None].clone(), [early])
    assert token.token == 0
    assert early.append(token) is None
    (token,) = sample(LOGITS[None].clone(), [early])
    assert token.token == 4 and early.append(token) == "stop"
