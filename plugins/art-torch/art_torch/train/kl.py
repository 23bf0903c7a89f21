"""How far the policy is from a reference: measured on sampled tokens, and taken from their advantages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: a ratio beyond it is noise, and its float32 exponential would overflow soon after."""


def penalised(
    advantages_BT: NDArray[np.float32], log_ratio_BT: NDArray[np.float32], mask_BT: NDArray[np.bool_], coef: float
) -> NDArray[np.float32]:
    """Advantages less `coef` times each token's log ratio to the reference, less the mean of it over the batch.

    With a reward r of its own for every token, r - coef·log(p/ref) is the reward under a KL penalty; the mean is a
    baseline, so that the penalty says which tokens to move and not that all were bad.

    Args:
        advantages_BT: As the rewards gave them; 0 where not sampled.
        log_ratio_BT: Natural log of policy over reference probability; anything where not sampled.
        mask_BT: Which tokens were sampled.
        coef: In units of advantage per nat.

    Returns:
        float32, 0 where not sampled.

    Source:
        Ziegler et al. 2019 (arXiv:1909.08593), equation 2, per token as in Ouyang et al. 2022 (arXiv:2203.02155),
        equation 2; the mean is openpipe-art's.
    """
    log_ratio_N = log_ratio_BT[mask_BT].astype(np.float64)
    penalised_BT = advantages_BT.copy()
    penalised_BT[mask_BT] -= (coef * (log_ratio_N - log_ratio_N.mean())).astype(np.float32)
    return penalised_BT


def estimate(log_ratio_N: NDArray[np.floating]) -> float:
    """KL(p ‖ q) in nats from tokens sampled of p: the mean of q/p - 1 - log(q/p). At least 0, and of low variance.

    Args:
        log_ratio_N: Natural log of q over p of tokens that p sampled; held within ±`LOG_RATIO_LIMIT`.

    Returns:
        0 where there is no token.

    Source:
        Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html), estimator k3; Shao et al. 2024,
        GRPO (arXiv:2402.03300), equation 4.
    """
    held_N = np.clip(np.asarray(log_ratio_N, np.float64), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return float((np.expm1(held_N) - held_N).mean()) if held_N.size else 0.0
