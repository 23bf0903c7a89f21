"""That a trainer computes what it says: its logprobs and its gradients, held to the kit's own model in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_core.batch import TrainBatch
from art_core.file_record import record
from art_core.step import StepConfig
from art_core.testing.adapter import AdapterShape, write_adapter
from art_core.testing.promise import promised
from art_core.testing.trainer.bench import LARGE, TrainerBench, TrainerCase
from art_core.testing.trainer.reference import Adapter, ReferenceModel, Weights

BY_GRADIENT = StepConfig(learning_rate=1.0, adam_epsilon=1.0, weight_decay=0.0, max_grad_norm=1e-2)
"""A first step that moves the weights along the gradient itself: far above its entries, Adam's floor is all that they
are divided by."""

_DIRECTIONS = 48
"""Random directions that stand for all: of two vectors, the products with them correlate as the vectors do."""

_GAP_NATS = {"float32": 1e-3}
_COSINE = {"float32": 0.9998}  # so that of any two such trainers the gradients agree to 0.999


class TrainerParity(TrainerCase):
    """Tests against `ReferenceModel`."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, base_model: Path) -> ReferenceModel:
        """The base model in numpy."""
        return ReferenceModel(base_model)

    async def test_a_saved_adapter_computes_what_the_trainer_does(
        self, bench: TrainerBench, reference: ReferenceModel
    ) -> None:
        """On top of the base, the saved files give the logprobs that the trainer says: within 1e-3 nats in float32."""
        for seed in range(2):
            probe = (await bench.trainer.step(bench.batch(seed), LARGE)).probe
        adapter = Adapter.read(await bench.saved())
        limit = _GAP_NATS.get(bench.info.model.dtype, 0.1)
        for tokens, scored, after in zip(probe.tokens, probe.scored, probe.after, strict=True):
            expected_BT = reference.logprobs(adapter, tokens[None], np.ones_like(after)[None])
            gap = float(np.abs(expected_BT[0] - after)[scored].max())
            promised(gap <= limit, f"saved adapter and trainer agree within {limit:g} nats", f"{gap:.3g}")

    async def test_a_step_follows_the_gradient(self, bench: TrainerBench, reference: ReferenceModel) -> None:
        """A step moves all weights along the objective's gradient: cosine 0.9998 or more in float32."""
        start = bench.directory()
        write_adapter(bench.base_model, start, AdapterShape(rank=bench.spec.lora.rank, alpha=bench.spec.lora.alpha))
        await bench.reset(start)
        before = Adapter.read(start)
        batch = _on_policy(reference, before, bench.batch())
        await bench.trainer.step(batch, BY_GRADIENT)
        after = Adapter.read(await bench.saved())
        rng, moves, slopes = np.random.default_rng(0), [], []
        for _ in range(_DIRECTIONS):
            along: Weights = {name: rng.normal(size=each.shape) for name, each in sorted(before.weights.items())}
            moves.append(sum(float((along[n] * (after.weights[n] - before.weights[n])).sum()) for n in along))
            there, back = (reference.objective(before.moved(along, distance), batch) for distance in (1e-5, -1e-5))
            slopes.append(there - back)
        cosine = float(np.dot(moves, slopes) / (np.linalg.norm(moves) * np.linalg.norm(slopes)))
        least = _COSINE.get(bench.info.model.dtype, 0.97)
        promised(cosine >= least, f"a step goes along the gradient, cosine {least:g} or more", f"{cosine:.5f}")

    async def test_steps_on_one_batch_raise_its_objective(self, bench: TrainerBench, reference: ReferenceModel) -> None:
        """Steps on a fixed batch make what had an advantage more likely, and what had a disadvantage less."""
        reached = []
        for _ in range(3):
            adapter = Adapter.read(await bench.saved())
            batch = _on_policy(reference, adapter, bench.batch())
            reached.append(reference.objective(adapter, batch))
            await bench.trainer.step(batch, replace(LARGE, learning_rate=2e-3, weight_decay=0.0))
        promised(reached == sorted(reached) and reached[0] < reached[-1], "steps raise the objective", reached)

    async def test_the_base_model_is_untouched(self, bench: TrainerBench) -> None:
        """Training changes neither the base model's files nor its weights in memory."""
        files = {path.name: record(path) for path in bench.base_model.iterdir() if path.is_file()}
        fresh = (await bench.trainer.step(bench.batch(), LARGE)).probe.before
        await bench.trainer.step(bench.batch(1), LARGE)
        await bench.reset()
        again = (await bench.trainer.step(bench.batch(), LARGE)).probe.before
        same = all(np.array_equal(a, b) for a, b in zip(fresh, again, strict=True))
        promised(same, "a fresh adapter computes what it did before training, bit for bit")
        now = {path.name: record(path) for path in bench.base_model.iterdir() if path.is_file()}
        promised(now == files, "the base model's files are as they were")


def _on_policy(reference: ReferenceModel, adapter: Adapter, batch: TrainBatch) -> TrainBatch:
    """The batch as if the adapter had sampled it: every importance ratio is 1."""
    logprobs_BT = reference.logprobs(adapter, batch.tokens_BT, batch.temperatures_BT)
    return replace(batch, logprobs_BT=np.where(batch.loss_mask_BT, logprobs_BT, 0).astype(np.float32))
