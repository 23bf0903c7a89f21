"""Packed passes against separate, unpacked runs of the model with PEFT's own adapter: same logprobs, same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from art_torch.base_model import load_base
from art_torch.options import TorchTrainerOptions
from art_torch.train.adapter import adapt
from art_torch.train.learner import Learner
from art_torch.train.metric import Tally
from art_torch.train.objective import objectives
from art_torch.train.packing import pack
from art_torch.train.pass_model import Trainable, score_pass
from art_torch.train.row_model import RowModel
from art_torch.trainer import build
from peft import PeftModel
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from art_core.batch import TrainBatch
from art_core.config import LoRAConfig
from art_core.errors import ConfigError
from art_core.protocols.trainer import TrainerSpec
from art_core.step import StepConfig
from tests.plugins.art_torch.trainer_case import LORA, make_batch
from tests.tiny_model import write_tiny_model

Gradients = dict[str, torch.Tensor]


def write_mistral(directory: Path) -> Path:
    """The tiny model's tokenizer with another architecture: a sliding window shorter than the test's sequences."""
    write_tiny_model(directory)
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=258,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=13,
        max_position_embeddings=256,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    return directory


def learner(model: Path, checkpointing: bool = False) -> Learner:
    """With an adapter whose B is not zero, so that every gradient is."""
    options = TorchTrainerOptions(device="cpu", gradient_checkpointing=checkpointing)
    return stirred(Learner(build(options, TrainerSpec(str(model), LORA))))


def row_learner(model: Path) -> Learner:
    """The same, but it takes plain rows."""
    base = load_base(str(model), "cpu")
    rows = RowModel(base.model)
    return stirred(Learner(Trainable(base.info, rows, adapt(base.model, LORA, str(model)), (), base.tokenizer)))


def stirred(made: Learner) -> Learner:
    torch.manual_seed(5)
    for parameter in made._adapter.parameters.values():
        parameter.data.normal_(std=0.3)
    return made


def packed_gradients(made: Learner, batch: TrainBatch, config: StepConfig) -> tuple[Gradients, Tally]:
    tally = Tally(np.full(batch.tokens_BT.shape, np.nan, np.float32))
    signal = made._signal(batch, config, made._reference(config), Event())
    (objective,) = objectives(batch, signal, config)
    made._accumulate(objective, tally, Event())
    np.testing.assert_array_equal(np.isfinite(tally.own_logprobs_BT), batch.loss_mask_BT)
    return {name: parameter.grad.clone() for name, parameter in made._adapter.parameters.items()}, tally


def plain_gradients(made: Learner, model: Path, batch: TrainBatch, directory: Path) -> tuple[Gradients, float]:
    """One sequence at a time through transformers and PEFT, CISPO written out once more."""
    for name, content in made.files().items():
        (directory / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    plain = PeftModel.from_pretrained(base, directory, is_trainable=True)
    total = torch.zeros(())
    for row in range(len(batch.lengths_B)):
        tokens_T = torch.from_numpy(batch.tokens_BT[row, : batch.lengths_B[row]]).long()
        columns = np.flatnonzero(batch.loss_mask_BT[row])
        logits = plain(input_ids=tokens_T[None]).logits[0, columns - 1].double()
        logits = logits / torch.from_numpy(batch.temperatures_BT[row, columns]).double()[:, None]
        logprob = logits.log_softmax(-1)[torch.arange(len(columns)), tokens_T[columns]]
        ratio = (logprob.detach() - torch.from_numpy(batch.logprobs_BT[row, columns])).exp().clamp(0, 5)
        total = total - (ratio * torch.from_numpy(batch.advantages_BT[row, columns]) * logprob).sum()
    loss = total / batch.loss_mask_BT.sum()
    loss.backward()
    found = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in plain.named_parameters()
        if parameter.requires_grad
    }
    return found, loss.item()


def assert_close(seen: Gradients, expected: Gradients, tolerance: float) -> None:
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        worst = (seen[name] - gradient).abs().max() / gradient.abs().max()
        assert worst < tolerance, f"{name}: {worst:.1e}"


@pytest.mark.parametrize("write", [write_tiny_model, write_mistral])
@pytest.mark.parametrize("limit", [25, 10_000])
def test_packed_passes_give_the_loss_and_gradients_of_separate_runs(
    write: Callable[[Path], Path], limit: int, tmp_path: Path
) -> None:
    model = write(tmp_path / "model")
    made, batch = learner(model), make_batch()
    seen, tally = packed_gradients(made, batch, StepConfig(microbatch_tokens=limit))
    expected, loss = plain_gradients(made, model, batch, tmp_path)
    assert abs(tally.loss_sum / batch.loss_tokens - loss) < 1e-5
    assert_close(seen, expected, 1e-4)


def test_packed_logprobs_are_those_of_separate_runs(tiny_model: Path) -> None:
    made, batch = learner(tiny_model), make_batch()
    (packed,) = pack(batch.tokens_BT, batch.loss_mask_BT, batch.group_ids_B, 10_000)
    together = score_pass(made._model, packed, batch.tokens_BT, batch.temperatures_BT, 7)
    apart = np.zeros(batch.tokens_BT.shape)
    alone_B = np.arange(len(batch.lengths_B), dtype=np.int32)
    for single in pack(batch.tokens_BT, batch.loss_mask_BT, alone_B, 1):
        apart[single.rows_N, single.columns_N] = score_pass(
            made._model, single, batch.tokens_BT, batch.temperatures_BT, 1024
        )
    np.testing.assert_allclose(together, apart[packed.rows_N, packed.columns_N], atol=1e-5)
    assert together.std() > 0.1


def test_checkpointed_layers_give_the_same_gradients(tiny_model: Path) -> None:
    batch, config = make_batch(), StepConfig()
    plain, _ = packed_gradients(learner(tiny_model), batch, config)
    checkpointed, _ = packed_gradients(learner(tiny_model, checkpointing=True), batch, config)
    assert_close(checkpointed, plain, 1e-6)


def test_rows_without_advantage_count_in_the_normaliser_and_need_no_forward(tiny_model: Path) -> None:
    batch = make_batch(groups=2)
    silent_BT = batch.advantages_BT.copy()
    silent_BT[3:] = 0
    both = replace(batch, advantages_BT=silent_BT)
    alone = TrainBatch(**{name: array[:3] for name, array in both.arrays().items()})
    first, second = learner(tiny_model), learner(tiny_model)
    config = StepConfig()
    together = first.step(both, config, Event())
    apart = second.step(alone, config, Event())
    share = alone.loss_tokens / both.loss_tokens
    assert together.metrics["loss/train"] == pytest.approx(apart.metrics["loss/train"] * share, rel=1e-5)
    assert together.metrics["loss/grad_norm"] == pytest.approx(apart.metrics["loss/grad_norm"] * share, rel=1e-5)
    assert together.metrics["data/step_packed_tokens"] == apart.metrics["data/step_packed_tokens"]


def test_an_architecture_that_packed_passes_cannot_express_is_refused(tmp_path: Path) -> None:
    """Gemma 2 caps its logits and its attention scores: trained without the caps it would be another function."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = write_tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(model)
    with pytest.raises(ConfigError, match=r"Gemma2ForCausalLM .* logprobs differ by .* choose another"):
        build(TorchTrainerOptions(device="cpu"), TrainerSpec(str(model), LoRAConfig()))


@pytest.mark.parametrize("limit", [40, 10_000])
def test_plain_rows_give_the_gradients_of_packed_passes(tiny_model: Path, limit: int) -> None:
    """Ragged rows, so that there is padding; limits that split the batch and that do not."""
    batch, config = make_batch(), StepConfig(microbatch_tokens=limit)
    packed, _ = packed_gradients(learner(tiny_model), batch, config)
    rows, _ = packed_gradients(row_learner(tiny_model), batch, config)
    assert_close(rows, packed, 1e-4)


def test_rows_keep_to_the_limit_with_their_padding(tiny_model: Path) -> None:
    model, batch = RowModel(load_base(str(tiny_model), "cpu").model), make_batch()
    passes = model.passes(batch.tokens_BT, batch.loss_mask_BT, batch.group_ids_B, 60)
    padded = [len(each.spans) * max(span.length for span in each.spans) for each in passes]
    assert len(passes) > 1 and max(padded) <= 60
    found_BT = np.zeros(batch.tokens_BT.shape, np.int32)
    for each in passes:
        found_BT[each.rows_N, each.columns_N] += 1
    np.testing.assert_array_equal(found_BT, batch.loss_mask_BT)
