"""What a step promises: what it changes, what it says, and that a failed one changes nothing."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from art_core.batch import TrainBatch
from art_core.checkpoint import ADAPTER
from art_core.errors import BatchError, CapabilityError, NonFiniteLossError
from art_core.step import PROBE_SEQUENCES, PROBE_TOKENS, Probe
from art_core.testing.batch import BatchShape, make_batch, with_advantages, with_token
from art_core.testing.promise import promised, refused
from art_core.testing.trainer.bench import LARGE, TrainerBench, TrainerCase

OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"loss_fn": "ppo", "epsilon": 0.1},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "mean ratios": {"importance_sampling_level": "average"},
    "geometric mean ratios": {"importance_sampling_level": "geometric_average"},
    "bounded ratios": {"max_negative_advantage_importance_sampling_weight": 0.5},
    "masked ratios": {"mask_prob_ratio": True, "epsilon": 0.1, "epsilon_high": 0.1},
    "tau": {"kimi_k2_tau": 0.5},
    "own old logprobs": {"precalculate_logprobs": True},
    "truncated weights": {"precalculate_logprobs": True, "truncated_importance_sampling": 0.5},
    "KL penalty": {"kl_penalty_coef": 1.0},
    "KL penalty of samples": {"kl_penalty_coef": 1.0, "kl_penalty_source": "sample"},
    "several updates": {"update_sequences": 2},
    "rate by trajectories": {"num_trajectories_learning_rate_multiplier_power": -1.0},
}
"""Options of a step that change what is learned, each with a value that must show."""


class TrainerSteps(TrainerCase):
    """Tests of `step`."""

    @pytest.mark.parametrize("option", OPTIONS)
    async def test_an_option_is_followed_or_refused(self, bench: TrainerBench, option: str) -> None:
        """No field of the config is left out in silence: the step differs, or is a CapabilityError before any work."""
        await bench.trainer.step(bench.batch(), LARGE)
        before = await bench.state()
        try:
            await bench.trainer.step(bench.batch(1), replace(LARGE, **OPTIONS[option]))
        except CapabilityError:
            promised(await bench.state() == before, f"a step refused for {option} leaves weights and optimizer")
            return
        followed = await bench.state()
        await bench.reset()
        await bench.trainer.step(bench.batch(), LARGE)
        await bench.trainer.step(bench.batch(1), LARGE)
        promised(await bench.state() != followed, f"a step follows the config: {option}", "the same bits as without")

    async def test_a_step_changes_the_adapter_and_says_so(self, bench: TrainerBench) -> None:
        """A batch with advantages makes one optimizer step: `updated`, other weights, other logprobs."""
        before = await bench.state()
        result = await bench.trainer.step(bench.batch(), LARGE)
        after = await bench.state()
        promised(result.updated, "a step with advantages says updated")
        promised(after[ADAPTER] != before[ADAPTER], "a step changes the adapter")
        change = max(float(np.abs(a - b).max()) for a, b in zip(result.probe.after, result.probe.before, strict=True))
        promised(change > 0, "the probe's logprobs changed with the weights")

    async def test_a_batch_without_advantage_changes_nothing(self, bench: TrainerBench) -> None:
        """No usable advantage: no optimizer step, no momentum, no decay; bit for bit the same state."""
        await bench.trainer.step(bench.batch(), LARGE)
        before = await bench.state()
        result = await bench.trainer.step(with_advantages(bench.batch(1), 0.0), LARGE)
        promised(not result.updated, "a step with nothing to learn says updated=False")
        promised(await bench.state() == before, "a step with nothing to learn leaves adapter and optimizer bit for bit")
        same = all(np.array_equal(a, b) for a, b in zip(result.probe.before, result.probe.after, strict=True))
        promised(same, "the probe of a step with nothing to learn is the same before and after")

    async def test_metrics_are_finite_numbers(self, bench: TrainerBench) -> None:
        """Metrics are finite numbers, also of a step with nothing to learn."""
        for batch in (bench.batch(), with_advantages(bench.batch(), 0.0)):
            metrics = (await bench.trainer.step(batch, LARGE)).metrics
            wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
            promised(metrics and not wrong, "metrics are finite numbers", wrong or "none at all")

    async def test_the_probe_is_of_the_batch_and_within_its_limits(self, bench: TrainerBench) -> None:
        """At most 2 of the batch's own sequences and 64 scored tokens, never the first; logprobs 0 where not scored."""
        batch = bench.batch(groups=8)
        probe = (await bench.trainer.step(batch, LARGE)).probe
        count = len(probe.tokens)
        promised(1 <= count <= PROBE_SEQUENCES, f"the probe has 1 to {PROBE_SEQUENCES} sequences", count)
        scored = sum(int(mask.sum()) for mask in probe.scored)
        promised(1 <= scored <= PROBE_TOKENS, f"the probe scores 1 to {PROBE_TOKENS} tokens together", scored)
        for tokens, mask, *logprobs in zip(probe.tokens, probe.scored, probe.before, probe.after, strict=True):
            promised(_is_part(tokens, mask, batch), "the probe's sequences are the batch's, scored where sampled")
            for row in logprobs:
                promised(row.dtype == np.float32 and row.shape == tokens.shape, "a float32 per token", row.shape)
                promised((row[~mask] == 0).all() and (row[mask] < 0).all(), "0 where not scored, a logprob elsewhere")

    async def test_the_probe_tells_what_the_weights_were_and_are(self, bench: TrainerBench) -> None:
        """`before` is under the previous step's weights, `after` under this step's: two steps meet."""
        batch = bench.batch()
        first = (await bench.trainer.step(batch, LARGE)).probe
        second = (await bench.trainer.step(batch, LARGE)).probe
        gap = _gap(first, second)
        promised(gap <= 1e-3, "a step's `before` is the previous step's `after` on the same tokens", f"{gap:.3g} nats")

    async def test_a_token_outside_the_vocabulary_is_refused(self, bench: TrainerBench) -> None:
        """Token ids outside the vocabulary are a BatchError; weights and optimizer stay as they were."""
        for token in (bench.info.model.vocab_size, -1, np.iinfo(np.int32).max):
            await self._refused(bench, BatchError, with_token(bench.batch(1), token), f"token id {token}")

    async def test_a_sequence_beyond_the_context_is_refused(self, bench: TrainerBench) -> None:
        """A sequence longer than the context is a BatchError; weights and optimizer stay as they were."""
        context = bench.info.model.context_tokens
        long = make_batch(bench.info.model, BatchShape(1, 1, 1, context, 8))
        await self._refused(bench, BatchError, long, f"{int(long.lengths_B.max())} tokens, context {context}")

    async def test_a_loss_that_is_not_finite_is_refused(self, bench: TrainerBench) -> None:
        """A loss or gradient that is not finite is a NonFiniteLossError; weights and optimizer stay as they were."""
        largest = float(np.abs(bench.batch(1).advantages_BT).max())
        huge = with_advantages(bench.batch(1), float(np.finfo(np.float32).max) / largest / 2)
        await self._refused(bench, NonFiniteLossError, huge, "advantages near float32's limit")

    async def test_a_cancelled_step_leaves_the_state(self, bench: TrainerBench) -> None:
        """A step cancelled before the optimizer update leaves weights and optimizer as they were; later, it is made."""
        batch, config = bench.batch(groups=40), replace(LARGE, microbatch_tokens=64)
        before = await bench.state()
        start_s = time.monotonic()
        await bench.trainer.step(batch, config)
        whole_s, after = time.monotonic() - start_s, await bench.state()
        for share in (3, 9, 27, 81):  # the machine may have become faster meanwhile
            await bench.reset()
            try:
                async with asyncio.timeout(whole_s / share):
                    await bench.trainer.step(batch, config)
            except TimeoutError:
                break
        else:
            promised(False, "a step can be cancelled", f"each time it was through; the first took {whole_s:.2f} s")
        # how far it had come by then, the machine decides
        left = await bench.state() in (before, after)
        promised(left, "a cancelled step leaves the state before it or the one after it, bit for bit")
        promised((await bench.trainer.step(bench.batch(), LARGE)).updated, "a trainer goes on after a cancelled step")

    async def _refused(self, bench: TrainerBench, error: type[Exception], batch: TrainBatch, what: str) -> None:
        await bench.reset()
        await bench.trainer.step(bench.batch(), LARGE)
        before = await bench.state()
        with refused(error, f"step refuses {what}"):
            await bench.trainer.step(batch, LARGE)
        promised(await bench.state() == before, f"a step refused for {what} leaves weights and optimizer bit for bit")
        await bench.trainer.step(bench.batch(2), LARGE)
        went_on = await bench.state()
        await bench.reset()
        await bench.trainer.step(bench.batch(), LARGE)
        await bench.trainer.step(bench.batch(2), LARGE)
        promised(await bench.state() == went_on, f"after a step refused for {what} the next one is as without it")


def _is_part(tokens: NDArray[np.int32], mask: NDArray[np.bool_], batch: TrainBatch) -> bool:
    """Whether a probe's sequence is the beginning of one of the batch's, and scored only where that was sampled."""
    length = len(tokens)
    rows = [row for row in range(len(batch.lengths_B)) if np.array_equal(batch.tokens_BT[row, :length], tokens)]
    sampled = [not (mask & ~batch.loss_mask_BT[row, :length]).any() for row in rows]
    return tokens.dtype == np.int32 and mask.dtype == np.bool_ and not mask[0] and any(sampled)


def _gap(first: Probe, second: Probe) -> float:
    """Largest difference of `first.after` and `second.before` on tokens that both score under equal contexts."""
    gaps = [math.inf]
    for tokens, mask, after in zip(first.tokens, first.scored, first.after, strict=True):
        for others, other_mask, before in zip(second.tokens, second.scored, second.before, strict=True):
            both = mask & other_mask if np.array_equal(tokens, others) else np.zeros(0, np.bool_)
            if both.any():
                gaps.append(float(np.abs(after[both] - before[both]).max()))
    return max(gaps[1:], default=math.inf)
