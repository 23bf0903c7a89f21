"""The losses against a reference in NumPy float64, and their gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art_torch.train.head import score, score_with_gradient
from art_torch.train.loss import policy_loss
from numpy.typing import NDArray
from torch import nn

from art_core.step import StepConfig

Float = NDArray[np.float64]
CONFIGS = [
    StepConfig(),
    StepConfig(epsilon=0.3, epsilon_high=0.5),
    StepConfig(loss_fn="ppo"),
    StepConfig(loss_fn="ppo", epsilon=0.1, epsilon_high=0.3),
]


def reference(new: Float, old: Float, advantage: Float, config: StepConfig, held: Float | None = None) -> Float:
    """The published formulas, one token at a time. `held`: the logprobs at which CISPO's weight is held constant."""
    low, high = config.ratio_limits
    losses = []
    for t in range(len(new)):
        difference = min(max(new[t] - old[t], -20.0), 20.0)
        ratio = np.exp(difference)
        if config.loss_fn == "ppo":
            losses.append(-min(ratio * advantage[t], min(max(ratio, low), high) * advantage[t]))
        else:
            at = new if held is None else held
            weight = min(max(np.exp(min(max(at[t] - old[t], -20.0), 20.0)), low), high)
            losses.append(-weight * advantage[t] * new[t])
    return np.array(losses)


def tokens() -> tuple[Float, Float, Float]:
    rng = np.random.default_rng(1)
    new = rng.normal(-3, 1, 200)
    old = new + np.concatenate([rng.normal(0, 0.6, 190), [0, 0, 30, -30, 3, -3, 0.2, -0.2, 25, -25]])
    return new, old, rng.choice([-1.5, -0.2, 0.0, 0.4, 2.0], 200)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_loss_is_the_published_formula(config: StepConfig) -> None:
    new, old, advantage = tokens()
    seen = policy_loss(*(torch.from_numpy(x.astype(np.float32)) for x in (new, old, advantage)), config)
    np.testing.assert_allclose(seen.loss_N.numpy(), reference(new, old, advantage, config), rtol=2e-4, atol=1e-5)
    ratio = np.exp(np.clip(new - old, -20, 20))
    np.testing.assert_allclose(seen.ratio_N.numpy(), ratio, rtol=2e-4)
    low, high = config.ratio_limits
    np.testing.assert_array_equal(seen.clipped_N.numpy(), (ratio < low) | (ratio > high))
    assert 0 < seen.clipped_N.float().mean() < 1


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gradient_is_the_slope_of_the_formula(config: StepConfig) -> None:
    new, old, advantage = tokens()
    leaf = torch.from_numpy(new).requires_grad_()
    policy_loss(leaf, torch.from_numpy(old), torch.from_numpy(advantage), config).loss_N.sum().backward()
    assert leaf.grad is not None
    h = 1e-6
    up, down = (reference(new + s * h, old, advantage, config, held=new) for s in (1, -1))
    limits = np.log(config.ratio_limits) if config.ratio_limits[0] > 0 else np.log([1e-300, config.ratio_limits[1]])
    smooth = np.abs((new - old)[:, None] - [*limits, -20, 20]).min(axis=1) > 1e-4
    assert smooth.sum() > 190
    np.testing.assert_allclose(leaf.grad.numpy()[smooth], ((up - down) / (2 * h))[smooth], rtol=1e-4, atol=1e-6)


def test_on_policy_both_losses_have_the_plain_policy_gradient() -> None:
    _, old, advantage = tokens()
    for config in (StepConfig(), StepConfig(loss_fn="ppo")):
        leaf = torch.from_numpy(old).requires_grad_()
        policy_loss(leaf, torch.from_numpy(old), torch.from_numpy(advantage), config).loss_N.sum().backward()
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), -advantage)


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

    scores, gradient = score_with_gradient(*arguments, slopes)
    assert chunks == [3, 3, 1]
    _, picked, entropy = total(hidden)
    np.testing.assert_allclose(scores.logprobs_N.numpy(), picked, atol=1e-5)
    np.testing.assert_allclose(scores.entropies_N.numpy(), entropy, atol=1e-5)
    np.testing.assert_array_equal(score(*arguments).logprobs_N.numpy(), scores.logprobs_N.numpy())
    for i, j in np.ndindex(hidden.shape):
        shift = np.zeros_like(hidden)
        shift[i, j] = 1e-6
        expected = (total(hidden + shift)[0] - total(hidden - shift)[0]) / 2e-6
        assert abs(gradient[i, j].item() - expected) < 1e-4
