"""The kit's own model in numpy computes what transformers and PEFT compute, and its derivative is theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from art_core.base_model import BaseIdentity, ModelInfo
from art_core.testing.adapter import AdapterShape, write_adapter
from art_core.testing.batch import BatchShape, make_batch
from art_core.testing.trainer.reference import Adapter, ReferenceModel

SIZE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = [LlamaConfig(**SIZE, rms_norm_eps=1e-3), Qwen2Config(**SIZE, tie_word_embeddings=True)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_it_computes_what_transformers_and_peft_compute(config: LlamaConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "base", tmp_path / "adapter", AdapterShape())
    info = ModelInfo(BaseIdentity(name="x", digest=""), 300, 512, None, "float32")
    batch = make_batch(info, BatchShape())

    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
    tokens_BT = torch.from_numpy(batch.tokens_BT).long()
    logits_BTV = adapted(tokens_BT).logits[:, :-1] / torch.from_numpy(batch.temperatures_BT)[:, 1:, None]
    logprobs_BT = logits_BTV.log_softmax(-1).gather(2, tokens_BT[:, 1:, None])[..., 0]
    reference, adapter = ReferenceModel(tmp_path / "base"), Adapter.read(tmp_path / "adapter")
    mine_BT = reference.logprobs(adapter, batch.tokens_BT, batch.temperatures_BT)
    here_BT = np.arange(mine_BT.shape[1]) < batch.lengths_B[:, None]
    gap = np.abs(mine_BT[:, 1:] - logprobs_BT.detach().numpy())[here_BT[:, 1:]].max()
    assert gap < 1e-4, gap

    advantages_BT = torch.from_numpy(batch.advantages_BT * batch.loss_mask_BT)[:, 1:]
    (advantages_BT * logprobs_BT).sum().backward()
    gradient = {
        name.replace(".default", ""): parameter.grad.double().numpy()
        for name, parameter in adapted.named_parameters()
        if parameter.grad is not None
    }
    assert gradient.keys() == adapter.weights.keys()
    length = np.sqrt(sum(float((each**2).sum()) for each in gradient.values()))
    there, back = (reference.objective(adapter.moved(gradient, sign * 1e-4 / length), batch) for sign in (1, -1))
    assert (there - back) / 2e-4 == pytest.approx(length, rel=1e-4)
