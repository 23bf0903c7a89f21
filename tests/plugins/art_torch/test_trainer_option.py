"""The step's options on a model: what each changes, against transformers and PEFT, and that each repeats itself."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.options import TorchTrainerOptions
from art_torch.train.learner import Learner
from art_torch.train.metric import METRICS
from art_torch.train.optimizer_state import Optimizer
from art_torch.trainer import TorchTrainer
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from art_core.batch import TrainBatch
from art_core.config import LoRAConfig
from art_core.errors import ArtError, BatchError, CheckpointCorruptError, ConfigError, NonFiniteLossError
from art_core.step import StepConfig
from tests.plugins.art_torch.test_trainer_adapter import DAMAGE, OPTIMIZER
from tests.plugins.art_torch.trainer_case import make_batch, saved, spec, started

FAST = StepConfig(learning_rate=1e-2, max_grad_norm=1.0, microbatch_tokens=60)
REFERENCE = "the reference adapter"
OPTIONS: dict[str, dict[str, Any]] = {
    "cispo": {},
    "ppo, clip-higher": {"loss_fn": "ppo", "epsilon": 0.2, "epsilon_high": 0.28},
    "sequence": {"loss_fn": "ppo", "importance_sampling_level": "sequence"},
    "average": {"importance_sampling_level": "average"},
    "geometric average": {"importance_sampling_level": "geometric_average"},
    "bounded, masked, pulled": {
        "max_negative_advantage_importance_sampling_weight": 2.0,
        "mask_prob_ratio": True,
        "kimi_k2_tau": 0.05,
    },
    "own old logprobs, truncated": {"precalculate_logprobs": True, "truncated_importance_sampling": 1.5},
    "kl to the base": {"kl_penalty_coef": 0.1},
    "kl of samples to an adapter": {
        "kl_penalty_coef": 0.1,
        "kl_penalty_source": "sample",
        "kl_ref_adapter_path": REFERENCE,
    },
    "several updates": {"update_sequences": 4, "num_trajectories_learning_rate_multiplier_power": -0.5},
    "small chunks": {"logprob_chunk_tokens": 3},
}


@pytest.fixture(scope="module")
async def loaded(tiny_model: Path) -> TorchTrainer:
    return await started(tiny_model)


@pytest.fixture
async def trainer(loaded: TorchTrainer, tiny_model: Path) -> TorchTrainer:
    """One step away from its fresh adapter."""
    await loaded.start(spec(tiny_model), None)
    await loaded.step(make_batch(9), FAST)
    return loaded


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as PEFT saves it: another rank, rsLoRA's scale, fewer modules, weights far from zero."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    shape = LoraConfig(
        r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, shape)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    directory = tmp_path_factory.mktemp("reference")
    model.save_pretrained(directory)
    return directory


def learner(trainer: TorchTrainer) -> Learner:
    assert trainer._learner is not None
    return trainer._learner


def configured(name: str, reference: Path) -> StepConfig:
    options = {key: str(reference) if value == REFERENCE else value for key, value in OPTIONS[name].items()}
    return replace(FAST, **options)


def plain_logprobs(model: PreTrainedModel | PeftModel, batch: TrainBatch) -> NDArray[np.float64]:
    """One sequence at a time; NaN where not sampled."""
    found = np.full(batch.tokens_BT.shape, np.nan)
    for row in range(len(batch.lengths_B)):
        tokens_T = torch.from_numpy(batch.tokens_BT[row, : batch.lengths_B[row]]).long()
        columns = np.flatnonzero(batch.loss_mask_BT[row])
        with torch.no_grad():
            logits = model(input_ids=tokens_T[None]).logits[0, columns - 1].double()
        logits = logits / torch.from_numpy(batch.temperatures_BT[row, columns]).double()[:, None]
        found[row, columns] = logits.log_softmax(-1)[torch.arange(len(columns)), tokens_T[columns]].numpy()
    return found


@pytest.mark.parametrize("name", OPTIONS)
async def test_the_same_seed_and_batches_give_the_same_bytes(
    trainer: TorchTrainer, tiny_model: Path, reference: Path, name: str
) -> None:
    config, results = configured(name, reference), []
    for _ in range(2):
        await trainer.start(spec(tiny_model), None)
        metrics = [(await trainer.step(make_batch(seed), config)).metrics for seed in range(2)]
        results.append((learner(trainer).files(), metrics))
    assert results[0] == results[1]
    assert set(metrics[1]) <= set(METRICS)
    await trainer.start(spec(tiny_model), None)
    plain = [(await trainer.step(make_batch(seed), FAST)).metrics for seed in range(2)]
    if name not in ("cispo", "small chunks"):
        assert learner(trainer).files() != results[0][0], "the option changes nothing"
    assert plain[0]["data/step_trainable_tokens"] == metrics[0]["data/step_trainable_tokens"]


@pytest.mark.parametrize("kind", ["base", "adapter", "own"])
async def test_a_kl_penalty_compares_with_what_transformers_and_peft_compute(
    trainer: TorchTrainer, tiny_model: Path, reference: Path, tmp_path: Path, kind: str
) -> None:
    """Own, reference and penalty from plain runs of separate models; the trainer swaps the update on its one base."""
    batch, own = make_batch(2), await saved(trainer, tmp_path / "own")
    directory = {"base": None, "adapter": reference, "own": own}[kind]
    path = None if directory is None else str(directory)
    config = replace(FAST, kl_penalty_coef=0.5, kl_ref_adapter_path=path)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    referred_BT = plain_logprobs(PeftModel.from_pretrained(base, directory) if directory else base, batch)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    own_BT = plain_logprobs(PeftModel.from_pretrained(base, own), batch)
    mask = batch.loss_mask_BT
    before = learner(trainer).files()
    signal = learner(trainer)._signal(batch, config, learner(trainer)._reference(config), Event())
    apart = own_BT - referred_BT
    expected = np.where(mask, batch.advantages_BT - 0.5 * (apart - apart[mask].mean()), 0)
    np.testing.assert_allclose(signal.advantages_BT, expected, atol=2e-5)
    np.testing.assert_allclose(signal.own_logprobs_BT[mask], own_BT[mask], atol=2e-5)
    kl = (np.exp(-apart) - 1 + apart)[mask].mean()
    assert signal.metrics["loss/kl_policy_ref"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert (kl > 1e-4) == (kind != "own")
    assert learner(trainer).files() == before
    result = await trainer.step(batch, config)
    after = learner(trainer).files()
    await trainer.start(spec(tiny_model), own)
    await trainer.step(replace(batch, advantages_BT=signal.advantages_BT), FAST)
    assert learner(trainer).files() == after, "a penalised step is a step on the penalised advantages"
    assert result.metrics["loss/kl_policy_ref"] == signal.metrics["loss/kl_policy_ref"]


async def test_a_penalty_pulls_back_to_the_reference_where_rewards_say_nothing(trainer: TorchTrainer) -> None:
    batch = make_batch(3)
    silent = replace(batch, advantages_BT=np.zeros_like(batch.advantages_BT))
    assert not (await trainer.step(silent, FAST)).updated
    config = replace(FAST, kl_penalty_coef=1.0, precalculate_logprobs=True, learning_rate=2e-3, weight_decay=0.0)
    distances = []
    for _ in range(12):
        result = await trainer.step(silent, config)
        assert result.updated
        distances.append(result.metrics["loss/kl_policy_ref"])
    assert distances[-1] < 0.9 * distances[0]


async def test_a_fresh_adapter_is_the_base_and_a_penalty_alone_teaches_nothing(
    trainer: TorchTrainer, tiny_model: Path
) -> None:
    await trainer.start(spec(tiny_model), None)
    batch = make_batch()
    silent = replace(batch, advantages_BT=np.zeros_like(batch.advantages_BT))
    result = await trainer.step(silent, replace(FAST, kl_penalty_coef=1.0))
    assert not result.updated
    assert result.metrics["loss/kl_policy_ref"] == 0


async def test_recomputed_old_logprobs_make_the_step_on_policy(trainer: TorchTrainer) -> None:
    batch = make_batch(4)
    metrics = (await trainer.step(batch, replace(FAST, precalculate_logprobs=True))).metrics
    assert metrics["loss/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["loss/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["loss/clip_fraction"] == 0
    assert metrics["loss/kl_policy_old"] == pytest.approx(0, abs=1e-9)
    assert metrics["offpolicy/engine_logprob_gap"] > 0.1  # the batch's own are another policy's


async def test_truncated_weights_are_the_trainer_s_over_the_engine_s(trainer: TorchTrainer) -> None:
    batch = make_batch(4)
    config = replace(FAST, precalculate_logprobs=True, truncated_importance_sampling=1.2)
    own_BT = learner(trainer)._signal(batch, config, {}, Event()).own_logprobs_BT.astype(np.float64)
    mask = batch.loss_mask_BT
    weight = np.minimum(np.exp(own_BT - batch.logprobs_BT), 1.2)
    expected = -(weight * batch.advantages_BT * own_BT)[mask].sum() / mask.sum()
    metrics = (await trainer.step(batch, config)).metrics
    assert metrics["loss/train"] == pytest.approx(expected, rel=1e-4)


async def test_a_step_of_several_updates_is_as_many_steps(
    trainer: TorchTrainer, tiny_model: Path, tmp_path: Path
) -> None:
    batch, start = make_batch(5), await saved(trainer, tmp_path / "start")
    result = await trainer.step(batch, replace(FAST, update_sequences=3))
    together = learner(trainer).files()
    await trainer.start(spec(tiny_model), start)
    metrics = []
    for first in (0, 3, 6):
        part = TrainBatch(**{name: array[first : first + 3] for name, array in batch.arrays().items()})
        metrics.append((await trainer.step(part, FAST)).metrics)
    assert learner(trainer).files() == together
    assert result.metrics["data/step_num_gradient_steps"] == 3
    assert result.metrics["loss/grad_norm"] == pytest.approx(np.mean([each["loss/grad_norm"] for each in metrics]))
    share = [each["data/step_trainable_tokens"] / batch.loss_tokens for each in metrics]
    assert result.metrics["loss/train"] == pytest.approx(np.dot(share, [each["loss/train"] for each in metrics]))
    # What the engine sampled is compared with the weights before the step, never with those between two updates.
    assert result.metrics["offpolicy/engine_logprob_gap"] == metrics[0]["offpolicy/engine_logprob_gap"]


async def test_the_probe_of_several_updates_spans_the_whole_step(trainer: TorchTrainer) -> None:
    batch = make_batch(5)
    first = (await trainer.step(batch, replace(FAST, update_sequences=3))).probe
    second = (await trainer.step(batch, replace(FAST, update_sequences=3))).probe
    for after, before, mask in zip(first.after, second.before, first.scored, strict=True):
        np.testing.assert_allclose(after[mask], before[mask], atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(first.after, first.before, strict=True)) > 1e-3


async def test_a_failure_in_a_later_update_takes_back_the_earlier_ones(
    trainer: TorchTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, update, calls = learner(trainer).files(), Optimizer.update, []

    def spoil(optimizer: Optimizer, *arguments: Any) -> None:
        update(optimizer, *arguments)
        calls.append(learner(trainer).files() != before)
        if len(calls) == 2:
            next(iter(optimizer._parameters.values())).data.fill_(float("nan"))

    monkeypatch.setattr(Optimizer, "update", spoil)
    with pytest.raises(NonFiniteLossError, match="updated weight"):
        await trainer.step(make_batch(6), replace(FAST, update_sequences=3))
    assert calls == [True, True]
    assert learner(trainer).files() == before


async def test_cancelled_between_two_updates_it_takes_back_the_first(
    trainer: TorchTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, update = learner(trainer).files(), Optimizer.update
    entered, released = threading.Event(), threading.Event()

    def held(optimizer: Optimizer, *arguments: Any) -> None:
        update(optimizer, *arguments)
        entered.set()
        assert released.wait(240)

    monkeypatch.setattr(Optimizer, "update", held)
    task = asyncio.create_task(trainer.step(make_batch(6), replace(FAST, update_sequences=3)))
    await asyncio.to_thread(entered.wait, 240)
    task.cancel()
    await asyncio.sleep(0)
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert learner(trainer).files() == before


def missing(batch: TrainBatch) -> TrainBatch:
    return replace(batch, logprobs_BT=np.where(batch.loss_mask_BT, np.float32(np.nan), np.float32(0)))


async def test_missing_logprobs_are_refused_unless_they_may_be_missing(trainer: TorchTrainer) -> None:
    before, batch = learner(trainer).files(), missing(make_batch(7))
    with pytest.raises(
        BatchError, match=r"token 9 of sequence 0 .* has no logprob; set allow_training_without_logprobs"
    ):
        await trainer.step(batch, FAST)
    assert learner(trainer).files() == before
    metrics = (await trainer.step(batch, replace(FAST, allow_training_without_logprobs=True))).metrics
    assert metrics["loss/ratio_mean"] == metrics["loss/ratio_max"] == 1
    assert not [name for name in metrics if name.startswith("offpolicy/")]


async def test_without_logprobs_later_updates_are_measured_from_the_start_of_the_step(trainer: TorchTrainer) -> None:
    config = replace(FAST, allow_training_without_logprobs=True, update_sequences=3)
    metrics = (await trainer.step(missing(make_batch(7)), config)).metrics
    assert metrics["loss/ratio_max"] > 1.001


async def test_the_learning_rate_grows_with_the_trajectories_of_an_update(trainer: TorchTrainer) -> None:
    batch = make_batch(8)
    twice = replace(batch, trajectory_ids_B=np.repeat(np.arange(5), 2)[:9].astype(np.int32))
    config = replace(FAST, learning_rate=1e-3, num_trajectories_learning_rate_multiplier_power=0.5)
    for given, rate in ((batch, 1e-3 * 3.0), (twice, 1e-3 * 5**0.5)):
        assert (await trainer.step(given, config)).metrics["loss/learning_rate"] == pytest.approx(rate)


async def test_the_temperature_is_that_of_the_sampling(trainer: TorchTrainer) -> None:
    """Same tokens and old logprobs, said to be sampled hotter: another distribution, another entropy, other ratios."""
    batch = make_batch(3)
    cold, hot = (
        replace(batch, temperatures_BT=np.where(batch.loss_mask_BT, np.float32(t), np.float32(1))) for t in (0.5, 2.0)
    )
    signals = [learner(trainer)._signal(b, replace(FAST, precalculate_logprobs=True), {}, Event()) for b in (cold, hot)]
    assert np.nanstd(signals[0].own_logprobs_BT) > 2 * np.nanstd(signals[1].own_logprobs_BT)
    entropies = [(await trainer.step(b, replace(FAST, learning_rate=0.0))).metrics["loss/entropy"] for b in (cold, hot)]
    assert entropies[0] < entropies[1]


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


REFERENCE_DAMAGE = {
    name: change
    for name, change in DAMAGE.items()
    if OPTIMIZER not in change[1]
    and "moment" not in name
    and name not in ("another rank", "another scale", "another dtype")
}
"""What is wrong with a checkpoint is wrong with a reference too; another shape of its own is not."""


@pytest.fixture(scope="module")
async def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = await started(tiny_model)
    await made.step(make_batch(), FAST)
    return await saved(made, tmp_path_factory.mktemp("trained") / "1")


@pytest.mark.parametrize("name", REFERENCE_DAMAGE)
async def test_a_hostile_reference_adapter_is_refused_by_name_and_changes_nothing(
    trainer: TorchTrainer, trained: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copied(trained, tmp_path / "hostile")
    REFERENCE_DAMAGE[name][0](directory)
    monkeypatch.chdir(tmp_path)
    before = learner(trainer).files()
    config = replace(FAST, kl_penalty_coef=0.1, kl_ref_adapter_path=str(directory))
    with pytest.raises(CheckpointCorruptError, match=r"adapter_(model|config)"):
        await trainer.step(make_batch(1), config)
    assert learner(trainer).files() == before
    assert not (tmp_path / "exploded").exists()
    assert (await trainer.step(make_batch(1), replace(config, kl_ref_adapter_path=str(trained)))).updated


def _rank(directory: Path) -> None:
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"r": 600}))


def _infinite(directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors[min(tensors)].view(-1)[0] = float("inf")
    save_file(tensors, directory / "adapter_model.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], Any], type[ArtError], str]] = {
    "a rank beyond reason": (_rank, CheckpointCorruptError, "rank r is 600; allowed here: 1 to 512"),
    "an infinite weight": (_infinite, CheckpointCorruptError, "not finite"),
    "a pickle beside": (
        lambda directory: (directory / "adapter_model.bin").write_bytes(pickle.dumps({})),
        CheckpointCorruptError,
        r"adapter_model\.bin, a pickle",
    ),
    "nothing there": (
        lambda directory: [path.unlink() for path in directory.iterdir()],
        CheckpointCorruptError,
        "adapter_config.json .* can't be opened",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_reference_says_what_is_wrong_with_it(
    trainer: TorchTrainer, reference: Path, tmp_path: Path, name: str
) -> None:
    change, error, message = REFUSED[name]
    directory = copied(reference, tmp_path / "reference")
    change(directory)
    with pytest.raises(error, match=message):
        await trainer.step(make_batch(1), replace(FAST, kl_penalty_coef=0.1, kl_ref_adapter_path=str(directory)))


async def test_a_reference_beyond_the_run_s_target_modules_is_refused(tiny_model: Path, reference: Path) -> None:
    narrow = TorchTrainer(TorchTrainerOptions(device="cpu"))
    await narrow.start(spec(tiny_model, LoRAConfig(rank=2, target_modules=["q_proj"])), None)
    with pytest.raises(ConfigError, match=r"changes '.*down_proj', which this run's adapter does not; .*q_proj"):
        await narrow.step(make_batch(), replace(FAST, kl_penalty_coef=0.1, kl_ref_adapter_path=str(reference)))
    await narrow.step(make_batch(), FAST)
    await narrow.stop()
