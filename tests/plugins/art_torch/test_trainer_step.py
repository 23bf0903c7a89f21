"""The trainer's step: what it changes, what it reports, what it refuses, and that failing or cancelled it changes
nothing."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.options import TorchTrainerOptions
from art_torch.train.metric import METRICS
from art_torch.train.objective import Objective
from art_torch.train.optimizer_state import Optimizer
from art_torch.train.probe import ProbeRows
from art_torch.trainer import TorchTrainer

from art_core.batch import TrainBatch
from art_core.config import LoRAConfig
from art_core.errors import (
    BatchError,
    ConfigError,
    NonFiniteLossError,
    OutOfMemoryError,
    TrainerError,
    TrainerStartError,
)
from art_core.protocols.trainer import TrainerSpec
from art_core.step import PROBE_SEQUENCES, PROBE_TOKENS, StepConfig
from tests.plugins.art_torch.trainer_case import make_batch, spec, started

FAST = StepConfig(learning_rate=1e-2, max_grad_norm=1.0)
SMALL_PASSES = replace(FAST, microbatch_tokens=30)


@pytest.fixture(scope="module")
async def loaded(tiny_model: Path) -> TorchTrainer:
    return await started(tiny_model)


@pytest.fixture
async def trainer(loaded: TorchTrainer, tiny_model: Path) -> TorchTrainer:
    """Started afresh for each test, on a base that stays loaded."""
    await loaded.start(spec(tiny_model), None)
    return loaded


def files(trainer: TorchTrainer) -> dict[str, bytes]:
    assert trainer._learner is not None
    return trainer._learner.files()


def state(trainer: TorchTrainer) -> dict[str, np.ndarray]:
    assert trainer._learner is not None
    weights = {name: p.detach() for name, p in trainer._learner._adapter.parameters.items()}
    return {name: t.double().numpy().copy() for name, t in (weights | trainer._learner._optimizer.tensors()).items()}


def chosen(batch: TrainBatch) -> ProbeRows:
    return ProbeRows.choose(batch, (batch.advantages_BT != 0).any(axis=1))


async def test_info_names_the_model_and_the_versions(loaded: TorchTrainer, tiny_model: Path) -> None:
    info = await loaded.start(spec(tiny_model), None)
    assert set(info.versions) == {"art-torch", "torch", "transformers", "peft"}
    assert info.versions["torch"] == torch.__version__.partition("+")[0] or info.versions["torch"] == torch.__version__
    assert (info.model.vocab_size, info.model.context_tokens, info.model.dtype) == (258, 512, "float32")
    assert info.model.identity.name == str(tiny_model)


async def test_a_step_changes_the_adapter_and_reports_every_documented_metric(trainer: TorchTrainer) -> None:
    before, batch = files(trainer), make_batch()
    base = {n: p.clone() for n, p in trainer._learner._model._decoder.named_parameters() if not p.requires_grad}
    result = await trainer.step(batch, FAST)
    assert result.updated
    assert all(files(trainer)[name] != before[name] for name in ("adapter_model.safetensors", "optimizer.safetensors"))
    assert set(result.metrics) == set(METRICS) - {"loss/kl_policy_ref"}
    assert all(isinstance(value, float) and math.isfinite(value) for value in result.metrics.values())
    assert result.metrics["data/step_trainable_tokens"] == batch.loss_tokens
    assert result.metrics["data/step_packed_tokens"] < result.metrics["data/step_unpacked_tokens"]
    assert result.metrics["loss/learning_rate"] == 1e-2
    assert 0 < result.metrics["loss/clip_fraction"] < 1 or result.metrics["loss/ratio_max"] <= 5
    now = dict(trainer._learner._model._decoder.named_parameters())
    assert all(torch.equal(now[name], parameter) for name, parameter in base.items())


async def test_token_metrics_are_those_of_the_model_before_the_step(trainer: TorchTrainer) -> None:
    """An engine that agrees with the trainer: ratio 1 everywhere, no gap, and the loss is minus the mean of A·logp."""
    batch = make_batch(seed=4)
    learner, one = trainer._learner, np.ones_like(batch.temperatures_BT)
    exact_BT = np.zeros_like(batch.logprobs_BT)
    rows = ProbeRows(batch, tuple(range(9)), batch.loss_mask_BT)
    for row, logprobs_T in enumerate(rows.score(learner._model, FAST)):
        exact_BT[row, : len(logprobs_T)] = logprobs_T
    on_policy = replace(batch, logprobs_BT=exact_BT, temperatures_BT=one)
    metrics = (await trainer.step(on_policy, SMALL_PASSES)).metrics
    assert metrics["loss/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["loss/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["loss/clip_fraction"] == 0
    assert metrics["offpolicy/engine_logprob_gap"] < 1e-5
    expected = -(batch.advantages_BT * exact_BT).sum() / batch.loss_tokens
    assert metrics["loss/train"] == pytest.approx(expected, rel=1e-4)
    assert 0 < metrics["loss/entropy"] < math.log(258)
    shifted = replace(on_policy, logprobs_BT=np.where(batch.loss_mask_BT, exact_BT - 0.5, 0).astype(np.float32))
    moved = await TorchTrainerAgain(trainer).step(shifted)
    assert moved["offpolicy/engine_logprob_gap"] == pytest.approx(0.5, abs=1e-4)
    assert moved["loss/ratio_mean"] == pytest.approx(math.exp(0.5), rel=1e-4)


class TorchTrainerAgain:
    """The same trainer set back to its fresh adapter."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer

    async def step(self, batch: TrainBatch) -> Any:
        assert self._trainer._spec is not None
        await self._trainer.start(self._trainer._spec, None)
        return (await self._trainer.step(batch, SMALL_PASSES)).metrics


async def test_steps_raise_the_probability_of_what_was_rewarded(trainer: TorchTrainer) -> None:
    batch = make_batch()
    gains = []
    for _ in range(15):
        probe = (await trainer.step(batch, FAST)).probe
        gains.append(probe)
    first, last = gains[0], gains[-1]
    rows = chosen(batch).rows
    for index, row in enumerate(rows):
        advantage = batch.advantages_BT[row][batch.loss_mask_BT[row]][0]
        change = (last.after[index] - first.before[index])[first.scored[index]].mean()
        assert np.sign(change) == np.sign(advantage) and abs(change) > 0.05


async def test_the_same_state_and_batch_give_the_same_bytes(trainer: TorchTrainer, tiny_model: Path) -> None:
    results = []
    for _ in range(2):
        await trainer.start(spec(tiny_model), None)
        for seed in range(3):
            metrics = (await trainer.step(make_batch(seed), SMALL_PASSES)).metrics
        results.append((files(trainer), metrics))
    assert results[0] == results[1]


async def test_passes_of_any_size_make_the_same_step(trainer: TorchTrainer, tiny_model: Path) -> None:
    await trainer.step(make_batch(), FAST)
    whole = state(trainer)
    for tokens in (1, 30, 60):
        await trainer.start(spec(tiny_model), None)
        await trainer.step(make_batch(), replace(FAST, microbatch_tokens=tokens))
        for name, value in state(trainer).items():
            if name.startswith("exp_avg."):
                np.testing.assert_allclose(value, whole[name], atol=1e-4 * np.abs(whole[name]).max(), err_msg=name)


async def test_the_update_is_adamw_on_the_clipped_gradient(trainer: TorchTrainer) -> None:
    configs = [
        StepConfig(learning_rate=1e-2, max_grad_norm=1e-3, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.99),
        StepConfig(learning_rate=3e-3, max_grad_norm=1e-2, weight_decay=0.5, adam_beta1=0.8, adam_epsilon=1e-6),
    ]
    betas = np.ones(2)
    for count, config in enumerate(configs, 1):
        old = state(trainer)
        result = await trainer.step(make_batch(count), config)
        new = state(trainer)
        beta1, beta2 = config.adam_beta1, config.adam_beta2
        betas *= beta1, beta2
        squares = 0.0
        for name in [n for n in new if not n.startswith(("exp_avg", "step"))]:
            m0, v0 = old[f"exp_avg.{name}"], old[f"exp_avg_sq.{name}"]
            m, v = new[f"exp_avg.{name}"], new[f"exp_avg_sq.{name}"]
            gradient = (m - beta1 * m0) / (1 - beta1)
            squares += (gradient**2).sum()
            np.testing.assert_allclose(v, beta2 * v0 + (1 - beta2) * gradient**2, rtol=1e-2, atol=1e-12)
            assert new[f"step.{name}"] == count
            # Bias correction with this step's betas: with constant ones it is the published form.
            corrected1, corrected2 = m / (1 - beta1**count), v / (1 - beta2**count)
            expected = old[name] * (1 - config.learning_rate * config.weight_decay)
            expected = expected - config.learning_rate * corrected1 / (np.sqrt(corrected2) + config.adam_epsilon)
            np.testing.assert_allclose(new[name], expected, rtol=1e-4, atol=2e-6)
        assert result.metrics["loss/grad_norm"] > config.max_grad_norm
        assert math.sqrt(squares) == pytest.approx(config.max_grad_norm, rel=1e-2)


@pytest.mark.parametrize("masked", [False, True])
async def test_nothing_to_learn_makes_no_update(trainer: TorchTrainer, masked: bool) -> None:
    await trainer.step(make_batch(), FAST)
    before, batch = files(trainer), make_batch(1)
    silent = replace(batch, advantages_BT=np.zeros_like(batch.advantages_BT))
    if masked:
        silent = replace(silent, loss_mask_BT=np.zeros_like(batch.loss_mask_BT))
    result = await trainer.step(silent, FAST)
    assert not result.updated
    assert files(trainer) == before
    assert set(result.metrics) <= set(METRICS)
    assert result.metrics["loss/train"] == result.metrics["loss/grad_norm"] == 0
    assert len(result.probe.tokens) == (0 if masked else PROBE_SEQUENCES)
    for a, b in zip(result.probe.after, result.probe.before, strict=True):
        np.testing.assert_array_equal(a, b)


async def test_the_probe_is_of_the_batch_small_and_moves_with_the_weights(trainer: TorchTrainer) -> None:
    long = make_batch(rows_per_group=4)
    batch = replace(long, advantages_BT=np.where(np.arange(12)[:, None] % 5 == 4, long.advantages_BT, 0))
    probe = (await trainer.step(batch, FAST)).probe
    rows = chosen(batch).rows
    assert set(rows) == {4, 9} and len(probe.tokens) == PROBE_SEQUENCES
    for i, row in enumerate(rows):
        T = len(probe.tokens[i])
        assert probe.tokens[i].dtype == np.int32 and probe.before[i].dtype == np.float32
        np.testing.assert_array_equal(probe.tokens[i], batch.tokens_BT[row, :T])
        np.testing.assert_array_equal(probe.scored[i], batch.loss_mask_BT[row, :T])
        assert probe.scored[i][-1] and not probe.scored[i][0]
        for logprobs in (probe.before[i], probe.after[i]):
            assert (logprobs[~probe.scored[i]] == 0).all() and (logprobs[probe.scored[i]] < 0).all()
        assert np.abs(probe.after[i] - probe.before[i])[probe.scored[i]].max() > 1e-3
    again = (await trainer.step(batch, FAST)).probe
    np.testing.assert_allclose(again.before[0], probe.after[0], atol=1e-5)


async def test_the_probe_is_at_temperature_1_whatever_was_sampled_at(
    trainer: TorchTrainer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training passes' own logprobs serve where they are at temperature 1; else the probe is scored for itself."""
    scored, score = [], ProbeRows.score

    def counted(rows: ProbeRows, *arguments: Any) -> Any:
        scored.append(score(rows, *arguments))
        return scored[-1]

    monkeypatch.setattr(ProbeRows, "score", counted)
    batch, probes = make_batch(), []
    for temperature, calls in ((1.0, 1), (0.5, 2)):
        await trainer.start(spec(tiny_model), None)
        scored.clear()
        temperatures_BT = np.full_like(batch.temperatures_BT, temperature)
        probes.append((await trainer.step(replace(batch, temperatures_BT=temperatures_BT), FAST)).probe)
        assert len(scored) == calls
    for one, two in zip(probes[0].before, probes[1].before, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_probe_scores_at_most_its_share_of_a_long_sequence() -> None:
    batch = make_batch(groups=1, rows_per_group=2)
    B, T = 2, 200
    long = TrainBatch(
        **{
            name: np.ones((B, T), array.dtype) if name.endswith("_BT") else array
            for name, array in batch.arrays().items()
        }
        | {"loss_mask_BT": np.arange(T)[None].repeat(B, 0) >= 20, "lengths_B": np.full(B, T, np.int32)}
    )
    rows = chosen(long)
    assert rows.scored_BT.sum() == PROBE_TOKENS
    probe = rows.probe((), ())
    assert [len(tokens) for tokens in probe.tokens] == [20 + PROBE_TOKENS // PROBE_SEQUENCES] * 2


def _token(value: int) -> Callable[[TrainBatch], TrainBatch]:
    def change(batch: TrainBatch) -> TrainBatch:
        tokens_BT = batch.tokens_BT.copy()
        tokens_BT[3, 5] = value
        return replace(batch, tokens_BT=tokens_BT)

    return change


def _long(batch: TrainBatch) -> TrainBatch:
    arrays = {}
    for name, array in batch.arrays().items():
        arrays[name] = np.pad(array, ((0, 0), (0, 600)), mode="edge") if name.endswith("_BT") else array
    return TrainBatch(**arrays | {"lengths_B": np.full(9, 600, np.int32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_token(258), "token 5 of sequence 3 is 258; allowed: 0 to 257"),
        (_token(-1), "token 5 of sequence 3 is -1; allowed: 0 to 257"),
        (_long, "sequence 0 has 600 tokens; the context of this base model is 512"),
        (lambda b: replace(b, lengths_B=b.lengths_B + 20), r"lengths are .* allowed: 1 to 23"),
        (lambda b: replace(b, lengths_B=b.lengths_B * 0), r"lengths are 0 to 0; allowed: 1 to 23"),
        (lambda b: replace(b, lengths_B=b.lengths_B - 2), "loss mask covers padding"),
    ],
)
async def test_a_batch_that_does_not_fit_the_model_is_refused_before_work(
    trainer: TorchTrainer, change: Callable[[TrainBatch], TrainBatch], message: str
) -> None:
    before = files(trainer)
    with pytest.raises(BatchError, match=message):
        await trainer.step(change(make_batch()), FAST)
    assert files(trainer) == before


@pytest.mark.parametrize(("scale", "message"), [(1e38, "loss is -?(inf|nan)"), (1e25, "gradient norm is (inf|nan)")])
async def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(
    trainer: TorchTrainer, scale: float, message: str
) -> None:
    await trainer.step(make_batch(), FAST)
    before, batch = files(trainer), make_batch(1)
    huge = replace(batch, advantages_BT=batch.advantages_BT * np.float32(scale))
    with pytest.raises(NonFiniteLossError, match=message):
        await trainer.step(huge, SMALL_PASSES)
    assert files(trainer) == before
    assert (await trainer.step(batch, FAST)).updated


async def test_an_error_after_the_update_puts_everything_back(
    trainer: TorchTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trainer.step(make_batch(), FAST)
    before = files(trainer)
    update = Optimizer.update

    def spoil(optimizer: Optimizer, *arguments: Any) -> None:
        update(optimizer, *arguments)
        next(iter(optimizer._parameters.values())).data.fill_(float("nan"))

    monkeypatch.setattr(Optimizer, "update", spoil)
    with pytest.raises(NonFiniteLossError, match="updated weight"):
        await trainer.step(make_batch(1), FAST)
    assert files(trainer) == before
    monkeypatch.undo()
    calls, score = [], ProbeRows.score

    def exhausted(rows: ProbeRows, *arguments: Any) -> Any:
        calls.append(rows)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return score(rows, *arguments)

    monkeypatch.setattr(ProbeRows, "score", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"microbatch_tokens \(now 2048; .* 2[0-3]\)"):
        await trainer.step(make_batch(1), FAST)
    assert files(trainer) == before


async def test_cancelled_before_the_update_it_ends_at_the_next_pass_and_changes_nothing(
    trainer: TorchTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trainer.step(make_batch(), FAST)
    before, batch = files(trainer), make_batch(1)
    entered, released, backward, passes = threading.Event(), threading.Event(), Objective.backward, []

    def held(objective: Objective, *arguments: Any) -> None:
        passes.append(len(passes))
        entered.set()
        assert released.wait(240)
        backward(objective, *arguments)

    monkeypatch.setattr(Objective, "backward", held)
    task = asyncio.create_task(trainer.step(batch, SMALL_PASSES))
    await asyncio.to_thread(entered.wait, 240)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # an impatient caller does not make it let go of a running pass
    await asyncio.sleep(0)
    assert not task.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert passes == [0]
    assert files(trainer) == before
    monkeypatch.undo()
    assert (await trainer.step(batch, SMALL_PASSES)).updated


async def test_cancelled_in_the_update_it_finishes_it(
    trainer: TorchTrainer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trainer.step(make_batch(), FAST)
    whole = files(trainer)
    await trainer.start(spec(tiny_model), None)
    entered, released, update = threading.Event(), threading.Event(), Optimizer.update

    def held(optimizer: Optimizer, *arguments: Any) -> None:
        entered.set()
        assert released.wait(240)
        update(optimizer, *arguments)

    monkeypatch.setattr(Optimizer, "update", held)
    task = asyncio.create_task(trainer.step(make_batch(), FAST))
    await asyncio.to_thread(entered.wait, 240)
    task.cancel()
    await asyncio.sleep(0)
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(trainer) == whole


async def test_start_again_resets_and_keeps_the_base(trainer: TorchTrainer, tiny_model: Path) -> None:
    fresh, base = files(trainer), trainer._learner._model
    await trainer.step(make_batch(), FAST)
    assert files(trainer) != fresh
    await trainer.start(spec(tiny_model), None)
    assert files(trainer) == fresh
    assert trainer._learner._model is base


async def test_stop_frees_the_model_and_can_be_repeated(tiny_model: Path) -> None:
    trainer = await started(tiny_model)
    await trainer.step(make_batch(), FAST)
    model = weakref.ref(trainer._learner._model._decoder)
    await trainer.stop()
    await trainer.stop()
    gc.collect()
    assert model() is None
    with pytest.raises(TrainerError, match="not started"):
        await trainer.step(make_batch(), FAST)
    with pytest.raises(TrainerError, match="not started"):
        await trainer.save(tiny_model)
    await trainer.start(spec(tiny_model), None)
    assert (await trainer.step(make_batch(), FAST)).updated


async def test_calls_out_of_order_are_refused(tiny_model: Path) -> None:
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu"))
    for call in (trainer.offload, trainer.onload):
        with pytest.raises(TrainerError, match="trainer 'torch' is not started"):
            await call()
    await trainer.start(spec(tiny_model), None)
    await trainer.offload()
    with pytest.raises(TrainerError, match="call onload before step"):
        await trainer.step(make_batch(), FAST)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
async def test_a_start_that_can_t_work_says_why(tiny_model: Path, tmp_path: Path) -> None:
    trainer = TorchTrainer(TorchTrainerOptions())
    with pytest.raises(ConfigError, match="no-such-model"):
        await trainer.start(TrainerSpec(str(tmp_path / "no-such-model"), LoRAConfig()), None)
    with pytest.raises(ConfigError, match=r"trainer_gpu_ids are \[0, 1\]"):
        await trainer.start(replace(spec(tiny_model), device_ids=(0, 1)), None)
    with pytest.raises(TrainerError, match="not started"):
        await trainer.step(make_batch(), FAST)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises((TrainerStartError, ConfigError), match="broken"):
        await trainer.start(spec(broken), None)


async def test_a_half_precision_base_keeps_the_adapter_in_float32(tiny_model: Path) -> None:
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu", dtype="bfloat16", gradient_checkpointing=True))
    info = await trainer.start(spec(tiny_model), None)
    assert info.model.dtype == "bfloat16"
    exact = await started(tiny_model)
    batch = make_batch()
    seen, expected = [(await t.step(batch, FAST)).metrics for t in (trainer, exact)]
    assert seen["loss/train"] == pytest.approx(expected["loss/train"], rel=0.05)
    assert seen["loss/grad_norm"] == pytest.approx(expected["loss/grad_norm"], rel=0.1)
    assert trainer._learner is not None
    for parameter in trainer._learner._adapter.parameters.values():
        assert parameter.dtype == torch.float32 and parameter.grad is None
