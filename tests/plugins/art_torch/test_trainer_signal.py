"""What a step's tokens teach, against plain float64 loops; and that nothing is scored that no option needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from art_torch.train.kl import estimate
from art_torch.train.metric import engine_agreement
from art_torch.train.objective import objectives
from art_torch.train.signal import Scorer, Signal, make_signal
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_core.errors import NonFiniteLossError
from art_core.step import StepConfig
from tests.plugins.art_torch.trainer_case import make_batch

Single = NDArray[np.float32]


def logprobs(batch: TrainBatch, seed: int) -> Single:
    """A policy's opinion of every sampled token, not far from the one that sampled."""
    drift_BT = np.random.default_rng(seed).normal(0, 0.3, batch.logprobs_BT.shape)
    return (batch.logprobs_BT + drift_BT).astype(np.float32)


class Policies:
    """Two scorers with known answers, and what they were asked for."""

    def __init__(self, batch: TrainBatch) -> None:
        known = replace(batch, logprobs_BT=np.nan_to_num(batch.logprobs_BT, nan=-4.0))
        self.own_BT, self.reference_BT = logprobs(known, 1), logprobs(known, 2)
        self.asked: dict[str, NDArray[np.bool_]] = {}

    def scorer(self, name: str, values_BT: Single) -> Scorer:
        def score(wanted_BT: NDArray[np.bool_]) -> Single:
            self.asked[name] = wanted_BT
            return np.where(wanted_BT, values_BT, np.float32(np.nan))

        return score

    def signal(self, batch: TrainBatch, config: StepConfig) -> Signal:
        return make_signal(batch, config, self.scorer("own", self.own_BT), self.scorer("reference", self.reference_BT))


def silent_rows(batch: TrainBatch) -> TrainBatch:
    """The last group has no advantage."""
    advantages_BT = batch.advantages_BT.copy()
    advantages_BT[6:] = 0
    return replace(batch, advantages_BT=advantages_BT)


def without_logprobs(batch: TrainBatch) -> TrainBatch:
    """The second row came without logprobs."""
    logprobs_BT = batch.logprobs_BT.copy()
    logprobs_BT[1, batch.loss_mask_BT[1]] = np.nan
    return replace(batch, logprobs_BT=logprobs_BT)


def penalised(batch: TrainBatch, policy_BT: Single, reference_BT: Single, coef: float) -> NDArray[np.float64]:
    """A_t - coef·(k_t - mean k), k_t = log p - log ref, token by token."""
    sampled = [(int(b), int(t)) for b, t in np.argwhere(batch.loss_mask_BT)]
    apart = {at: float(policy_BT[at]) - float(reference_BT[at]) for at in sampled}
    mean = math.fsum(apart.values()) / len(apart)
    expected = np.zeros(batch.tokens_BT.shape)
    for at in sampled:
        expected[at] = float(batch.advantages_BT[at]) - coef * (apart[at] - mean)
    return expected


@pytest.mark.parametrize("source", ["current_learner", "sample"])
def test_a_kl_penalty_is_taken_from_the_advantages(source: Any) -> None:
    batch = silent_rows(make_batch())
    policies = Policies(batch)
    signal = policies.signal(batch, StepConfig(kl_penalty_coef=0.3, kl_penalty_source=source))
    policy_BT = policies.own_BT if source == "current_learner" else batch.logprobs_BT
    expected = penalised(batch, policy_BT, policies.reference_BT, 0.3)
    np.testing.assert_allclose(signal.advantages_BT, expected, atol=1e-6)
    assert signal.trained_B.all()  # the reference has something to say of every row
    x = (policies.reference_BT - policy_BT)[batch.loss_mask_BT].astype(np.float64)
    assert signal.metrics == {"loss/kl_policy_ref": pytest.approx(float((np.exp(x) - 1 - x).mean()), rel=1e-6)}
    np.testing.assert_array_equal(signal.old_logprobs_BT, batch.logprobs_BT)


def test_a_kl_penalty_leaves_the_sum_of_advantages_as_it_is() -> None:
    batch = make_batch()
    signal = Policies(batch).signal(batch, StepConfig(kl_penalty_coef=0.7))
    assert signal.advantages_BT.sum(dtype=np.float64) == pytest.approx(batch.advantages_BT.sum(dtype=np.float64))


NEEDS = {
    "nothing": ({}, False, set()),
    "old logprobs": ({"precalculate_logprobs": True}, False, {"own"}),
    "penalty": ({"kl_penalty_coef": 0.1}, False, {"own", "reference"}),
    "penalty on samples": ({"kl_penalty_coef": 0.1, "kl_penalty_source": "sample"}, False, {"reference"}),
    "missing, penalty on samples": (
        {"kl_penalty_coef": 0.1, "kl_penalty_source": "sample"},
        True,
        {"own", "reference"},
    ),
    "missing, one update": ({}, True, set()),
    "missing, several updates": ({"update_sequences": 3}, True, {"own"}),
    "several updates": ({"update_sequences": 3}, False, set()),
}


@pytest.mark.parametrize("name", NEEDS)
def test_only_what_an_option_needs_is_scored(name: str) -> None:
    options, missing, asked = NEEDS[name]
    batch = without_logprobs(make_batch()) if missing else make_batch()
    policies = Policies(batch)
    policies.signal(batch, StepConfig(allow_training_without_logprobs=missing, **options))
    assert set(policies.asked) == asked


def test_rows_without_advantage_are_scored_for_a_penalty_alone() -> None:
    batch = silent_rows(make_batch())
    for coef, rows in ((0.0, 6), (0.1, 9)):
        policies = Policies(batch)
        policies.signal(batch, StepConfig(precalculate_logprobs=True, kl_penalty_coef=coef))
        expected = batch.loss_mask_BT & (np.arange(9) < rows)[:, None]
        for wanted_BT in policies.asked.values():
            np.testing.assert_array_equal(wanted_BT, expected)


def test_old_logprobs_are_the_engine_s_or_the_trainer_s_own() -> None:
    batch, mask = without_logprobs(make_batch()), make_batch().loss_mask_BT
    policies = Policies(batch)
    given = StepConfig(allow_training_without_logprobs=True)
    np.testing.assert_array_equal(policies.signal(batch, given).old_logprobs_BT, batch.logprobs_BT)
    filled = policies.signal(batch, replace(given, update_sequences=3)).old_logprobs_BT
    np.testing.assert_array_equal(
        filled[mask], np.where(np.isnan(batch.logprobs_BT), policies.own_BT, batch.logprobs_BT)[mask]
    )
    own = policies.signal(batch, replace(given, precalculate_logprobs=True))
    np.testing.assert_array_equal(own.old_logprobs_BT[mask], policies.own_BT[mask])


def test_a_reference_that_gives_no_number_is_refused() -> None:
    batch = make_batch()
    policies = Policies(batch)
    policies.reference_BT[batch.loss_mask_BT] = -np.inf
    with pytest.raises(NonFiniteLossError, match="reference policy"):
        policies.signal(batch, StepConfig(kl_penalty_coef=0.1))


def test_updates_split_the_batch_in_order_and_leave_out_what_teaches_nothing() -> None:
    batch = silent_rows(make_batch())
    config = StepConfig(learning_rate=1e-3, update_sequences=4, num_trajectories_learning_rate_multiplier_power=0.5)
    made = list(objectives(batch, Policies(batch).signal(batch, config), config))
    assert [np.flatnonzero(each.rows_B).tolist() for each in made] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [each.loss_tokens for each in made] == [
        int(batch.loss_mask_BT[:4].sum()),
        int(batch.loss_mask_BT[4:8].sum()),
    ]
    assert [np.flatnonzero(each.scored_BT.any(axis=1)).tolist() for each in made] == [[0, 1, 2, 3], [4, 5]]
    assert [each.learning_rate for each in made] == pytest.approx([1e-3 * 4**0.5, 1e-3 * 2**0.5])
    (whole,) = objectives(batch, Policies(batch).signal(batch, StepConfig()), StepConfig())
    assert whole.loss_tokens == batch.loss_tokens and whole.learning_rate == StepConfig().learning_rate


def test_the_kl_estimate_is_that_of_many_samples() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20))
    q = 0.8 * p + 0.2 * q
    drawn = rng.choice(20, 200_000, p=p)
    exact = float((p * np.log(p / q)).sum())
    assert estimate(np.log(q / p)[drawn]) == pytest.approx(exact, rel=0.05)
    assert estimate(np.zeros(0)) == 0.0
    assert math.isfinite(estimate(np.array([1e6, -1e6])))


def test_agreement_is_measured_on_the_newest_policy_s_tokens() -> None:
    batch = make_batch()
    steps_BT = np.where(batch.loss_mask_BT, np.where(np.arange(9)[:, None] < 4, 7, 5), -1).astype(np.int32)
    batch = replace(batch, policy_steps_BT=steps_BT)
    drift_BT = np.where(steps_BT == 7, np.float32(0.25), np.float32(3.0))
    drift_BT[0] = -0.5
    own_BT = np.where(batch.loss_mask_BT, batch.logprobs_BT + drift_BT, np.float32(np.nan))
    seen = engine_agreement(batch, own_BT)
    count = np.array([batch.loss_mask_BT[0].sum(), batch.loss_mask_BT[1:4].sum()])
    assert seen == {
        "offpolicy/engine_ratio_mean": pytest.approx(count @ np.exp([-0.5, 0.25]) / count.sum(), rel=1e-5),
        "offpolicy/engine_ratio_max": pytest.approx(math.exp(0.25), rel=1e-5),
        "offpolicy/engine_logprob_gap": pytest.approx(count @ [0.5, 0.25] / count.sum(), rel=1e-5),
        "offpolicy/engine_logprob_gap_max": pytest.approx(0.5, rel=1e-5),
    }
    assert engine_agreement(batch, np.full_like(own_BT, np.nan)) == {}
