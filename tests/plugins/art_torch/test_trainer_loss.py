"""The losses against a reference in NumPy float64, and their gradients against finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.train.head import score, score_with_gradient
from art_torch.train.loss import Tokens, importance_ratio, policy_loss
from numpy.typing import NDArray
from torch import nn

from art_core.step import StepConfig

Float = NDArray[np.float64]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow clip": {"epsilon": 0.3, "epsilon_high": 0.5},
    "clip-higher": {"epsilon": 0.2, "epsilon_high": 0.28},
    "sequence": {"importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    "average": {"importance_sampling_level": "average", "epsilon": 0.2},
    "geometric average": {"importance_sampling_level": "geometric_average", "epsilon": 0.2},
    "bounded": {"max_negative_advantage_importance_sampling_weight": 1.5},
    "bounded below the clip": {"max_negative_advantage_importance_sampling_weight": 0.9, "epsilon": 0.2},
    "masked": {"mask_prob_ratio": True, "epsilon": 0.3, "epsilon_high": 0.5},
    "pulled": {"kimi_k2_tau": 0.3},
    "truncated": {"precalculate_logprobs": True, "truncated_importance_sampling": 1.3},
    "all at once": {
        "importance_sampling_level": "average",
        "epsilon": 0.3,
        "epsilon_high": 0.9,
        "max_negative_advantage_importance_sampling_weight": 1.4,
        "mask_prob_ratio": True,
        "kimi_k2_tau": 0.1,
        "precalculate_logprobs": True,
        "truncated_importance_sampling": 0.8,
    },
}
CONFIGS = [
    pytest.param(StepConfig(loss_fn=loss_fn, **options), id=f"{loss_fn} {name}")
    for loss_fn in ("cispo", "ppo")
    for name, options in OPTIONS.items()
]


@dataclass(frozen=True)
class Case:
    """What the loss is told of its tokens, in float64."""

    new: Float
    old: Float
    engine: Float
    advantage: Float
    sequence: NDArray[np.int64]

    def tokens(self, dtype: torch.dtype) -> Tokens:
        old, advantage, engine = (torch.from_numpy(x).to(dtype) for x in (self.old, self.advantage, self.engine))
        return Tokens(old, advantage, torch.from_numpy(self.sequence), engine)


SEQUENCES = [1, 2, 3, 5, 8, 13, 10, 16, 1, 1, 1, 1]


def case() -> Case:
    """Sequences of 1 to 16 tokens, some far off-policy, one token without an old logprob, some beyond ±20."""
    rng = np.random.default_rng(1)
    sequence = np.repeat(np.arange(len(SEQUENCES)), SEQUENCES).astype(np.int64)
    N = len(sequence)
    drift = np.concatenate([[0.0], rng.normal(0, 0.02, 10), rng.normal(0, 0.5, N - 21), np.zeros(10)])
    drift[-10:] = [3, -3, 0.2, -0.2, 0.0, 0.01, 30, -30, 25, -25]
    new = rng.normal(-3, 1, N)
    old = new - drift
    old[5] = np.nan
    return Case(new, old, new + rng.normal(0, 0.4, N), rng.choice([-1.5, -0.2, 0.0, 0.4, 2.0], N), sequence)


def reference(given: Case, config: StepConfig, held: Float) -> list[float]:
    """The published formulas, one token at a time. `held`: the logprobs at which what has no gradient is computed."""

    def clip(value: float, low: float, high: float) -> float:
        return min(max(value, low), high)

    low, high = config.ratio_limits
    count = len(given.new)
    fellows = [np.flatnonzero(given.sequence == s).tolist() for s in given.sequence]

    def log_ratios(logprobs: Float) -> list[float]:
        old = [given.old[t] if given.old[t] == given.old[t] else held[t] for t in range(count)]
        return [clip(logprobs[t] - old[t], -20.0, 20.0) for t in range(count)]

    def ratios(logprobs: Float) -> list[float]:
        logs = log_ratios(logprobs)
        made = []
        for t in range(count):
            whole = math.prod(math.exp(logs[u] / len(fellows[t])) for u in fellows[t])
            own = math.exp(logs[t])
            levels = {"token": own, "sequence": whole, "average": (own + whole) / 2}
            made.append(levels.get(config.importance_sampling_level, math.sqrt(own * whole)))
        return made

    free, losses = ratios(given.new), []
    held_ratios, held_logs = ratios(held), log_ratios(held)
    for t in range(count):
        advantage = given.advantage[t] - (config.kimi_k2_tau or 0.0) * held_logs[t]
        largest = config.max_negative_advantage_importance_sampling_weight
        bound = largest if largest is not None and advantage < 0 else math.inf
        if config.loss_fn == "ppo":
            ratio = min(free[t], bound)
            loss = -min(ratio * advantage, clip(ratio, low, high) * advantage)
        else:
            loss = -clip(min(held_ratios[t], bound), low, high) * advantage * given.new[t]
        if config.mask_prob_ratio and not low <= held_ratios[t] <= high:
            loss = 0.0
        if config.truncated_importance_sampling is not None:
            old = given.old[t] if given.old[t] == given.old[t] else held[t]
            loss *= min(math.exp(clip(old - given.engine[t], -20, 20)), config.truncated_importance_sampling)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_is_the_published_formula(config: StepConfig) -> None:
    given = case()
    exact = policy_loss(torch.from_numpy(given.new), given.tokens(torch.float64), config)
    expected = reference(given, config, given.new)
    np.testing.assert_allclose(exact.loss_N.numpy(), expected, rtol=1e-10, atol=1e-12)
    single = policy_loss(torch.from_numpy(given.new).float(), given.tokens(torch.float32), config)
    np.testing.assert_allclose(single.loss_N.numpy(), expected, rtol=1e-3, atol=1e-4)
    drift = np.clip(given.new - np.where(np.isnan(given.old), given.new, given.old), -20, 20)
    np.testing.assert_allclose(exact.log_ratio_N.numpy(), drift, atol=1e-12)
    low, high = config.ratio_limits
    ratio = exact.ratio_N.numpy()
    np.testing.assert_array_equal(exact.outside_N.numpy(), (ratio < low) | (ratio > high))
    assert 0 < exact.outside_N.double().mean() < 1


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gradient_is_the_slope_of_the_formula(config: StepConfig) -> None:
    """Sequence ratios couple the tokens, so each logprob is moved alone and the whole sum is watched."""
    given = case()
    leaf = torch.from_numpy(given.new).requires_grad_()
    policy_loss(leaf, given.tokens(torch.float64), config).loss_N.sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    h = 1e-6
    for t in range(len(given.new)):
        up, down = given.new.copy(), given.new.copy()
        up[t] += h
        down[t] -= h
        losses = zip(*(reference(replace(given, new=new), config, given.new) for new in (up, down)), strict=True)
        slope = math.fsum(above - below for above, below in losses) / (2 * h)
        assert leaf.grad[t].item() == pytest.approx(slope, rel=1e-4, abs=1e-5), t


@pytest.mark.parametrize("loss_fn", ["cispo", "ppo"])
@pytest.mark.parametrize("name", ["plain", "clip-higher", "bounded", "masked", "pulled"])
def test_on_policy_every_loss_has_the_plain_policy_gradient(loss_fn: Any, name: str) -> None:
    """Before anything has moved, ratios are 1 and nothing is clipped or pulled: minus the advantage, token by token."""
    given = case()
    leaf = torch.from_numpy(given.new).requires_grad_()
    tokens = replace(given, old=given.new).tokens(torch.float64)
    policy_loss(leaf, tokens, StepConfig(loss_fn=loss_fn, **OPTIONS[name])).loss_N.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), -given.advantage, atol=1e-12)


def test_cross_entropy_is_minus_the_weighted_logprob_whatever_the_old_policy() -> None:
    given = case()
    leaf = torch.from_numpy(given.new).requires_grad_()
    loss = policy_loss(leaf, given.tokens(torch.float64), StepConfig(loss_fn="cross_entropy"))
    np.testing.assert_array_equal(loss.loss_N.detach().numpy(), -given.advantage * given.new)
    loss.loss_N.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_array_equal(leaf.grad.numpy(), -given.advantage)


def test_tokens_without_an_old_logprob_are_on_policy() -> None:
    given = case()
    unknown = replace(given, old=np.full(sum(SEQUENCES), np.nan))
    loss = policy_loss(torch.from_numpy(given.new), unknown.tokens(torch.float64), StepConfig())
    assert (loss.ratio_N == 1).all() and not loss.outside_N.any()


def test_a_sequence_s_ratio_is_its_tokens_geometric_mean_wherever_they_stand() -> None:
    log_ratio = torch.tensor([1.0, -3.0, 2.0, 0.5])
    sequences = torch.tensor([1, 0, 1, 0])
    seen = importance_ratio(log_ratio, sequences, "sequence")
    torch.testing.assert_close(seen, torch.tensor([1.5, -1.25, 1.5, -1.25]).exp())


def test_the_heads_chunks_give_logprob_entropy_and_gradient_of_a_float64_softmax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    hidden, weight, bias = rng.normal(size=(7, 6)), rng.normal(size=(11, 6)), rng.normal(size=11)
    targets, temperature = rng.integers(0, 11, 7), np.array([1, 1, 0.5, 0.5, 2, 2, 1.0])
    head = nn.Linear(6, 11)
    head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    head.requires_grad_(False)
    slope = rng.normal(size=7)

    def total(h: Float) -> tuple[float, Float, Float]:
        z = (h @ weight.T + bias) / temperature[:, None]
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        picked = logp[np.arange(7), targets]
        return float(slope @ picked), picked, -(np.exp(logp) * logp).sum(1)

    monkeypatch.setattr("art_torch.train.head._CHUNK_LOGITS", 33)  # three tokens a chunk, the last chunk short
    arguments = (
        head,
        torch.from_numpy(hidden).float(),
        torch.from_numpy(targets),
        torch.from_numpy(temperature).float(),
    )
    chunks = []

    def slopes(part: slice, logprobs_N: torch.Tensor) -> torch.Tensor:
        chunks.append(len(logprobs_N))
        return torch.from_numpy(slope[part]).float()

    scores, gradient = score_with_gradient(*arguments, slopes, 1024)
    assert chunks == [3, 3, 1]
    chunks.clear()
    smaller, _ = score_with_gradient(*arguments, slopes, 2)
    assert chunks == [2, 2, 2, 1]
    torch.testing.assert_close(smaller.logprobs_N, scores.logprobs_N)
    _, picked, entropy = total(hidden)
    np.testing.assert_allclose(scores.logprobs_N.numpy(), picked, atol=1e-5)
    np.testing.assert_allclose(scores.entropies_N.numpy(), entropy, atol=1e-5)
    np.testing.assert_array_equal(score(*arguments, 1024).logprobs_N.numpy(), scores.logprobs_N.numpy())
    for i, j in np.ndindex(hidden.shape):
        shift = np.zeros_like(hidden)
        shift[i, j] = 1e-6
        expected = (total(hidden + shift)[0] - total(hidden - shift)[0]) / 2e-6
        assert abs(gradient[i, j].item() - expected) < 1e-4
