"""Run by test_model in torchtune's interpreter: torchtune's side of every figure that the test asks for.

usage: model_child.py

Prints one JSON object: name of a model to its figures. All gaps are the largest difference of a logprob, in nats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from art_torch.train.packing import pack
from art_torchtune.architecture import require_supported
from art_torchtune.conversion import base_to_tune, peft_to_tune, tune_to_peft
from art_torchtune.decoder import TunePassModel
from art_torchtune.trainer import adapt
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torchtune.models.convert_weights import tune_to_peft_adapter_weights
from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.models.qwen2 import lora_qwen2
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from art_core.config import LoRAConfig

TOKENS = 300
SIZE = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 1e4,
}
MODELS: Mapping[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZE, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "llama, scaled": LlamaConfig(**SIZE, rope_parameters=SCALED, tie_word_embeddings=False),
    "llama, scaled, tied": LlamaConfig(**SIZE, rope_parameters=SCALED, tie_word_embeddings=True),
    "llama, one key head": LlamaConfig(**SIZE | {"num_key_value_heads": 1}),
    "mistral": MistralConfig(**SIZE, sliding_window=None),
    "qwen2": Qwen2Config(**SIZE, rms_norm_eps=1e-6),
    "qwen2, tied": Qwen2Config(**SIZE, tie_word_embeddings=True),
}
LORA = LoRAConfig(rank=4, alpha=8.0)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """Weights large enough that a wrong angle or a missing bias shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    return model


def random_adapter(model: PreTrainedModel) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model as PEFT adapts it, and the adapter's tensors as PEFT would write them."""
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted, get_peft_model_state_dict(adapted)


def plain(logits: Callable[[Tensor], Tensor], tokens_BT: np.ndarray) -> Tensor:
    """All logprobs of a model called on plain rows."""
    with torch.no_grad():
        return logits(torch.from_numpy(tokens_BT).long()).log_softmax(-1)


def packed(model: TunePassModel, tokens_BT: np.ndarray) -> Tensor:
    """All logprobs of all positions but the last, from one pass whose rows share a prefix."""
    scored_BT = np.ones(tokens_BT.shape, np.bool_)
    scored_BT[:, 0] = False
    (each,) = pack(tokens_BT, scored_BT, np.zeros(len(tokens_BT), np.int32), tokens_BT.size)
    with torch.no_grad():
        logprobs_NV = model.head(model.hidden(each)).log_softmax(-1)
    result = torch.zeros(*tokens_BT.shape, logprobs_NV.shape[-1])
    result[each.rows_N, each.columns_N - 1] = logprobs_NV
    return result[:, :-1]


def builders_own(config: PretrainedConfig, weights: dict[str, Tensor]) -> nn.Module:
    """torchtune's own LoRA model, as its recipes build it, with those weights."""
    build = lora_qwen2 if config.model_type == "qwen2" else lora_llama3_2
    scaled = {} if config.model_type == "qwen2" else {"scale_factor": 1}
    model = build(
        ["q_proj", "k_proj", "v_proj", "output_proj"],
        apply_lora_to_mlp=True,
        **shape(config),
        **scaled,
        lora_rank=LORA.rank,
        lora_alpha=LORA.alpha,
    ).eval()
    if config.rope_parameters["rope_type"] == "llama3":
        rope = Llama3ScaledRoPE(config.head_dim, config.max_position_embeddings, 10_000, 8, 1, 4, 128)
        for layer in model.layers:
            layer.attn.pos_embeddings = rope
    model.load_state_dict(weights)
    return model


def shape(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "embed_dim": config.hidden_size,
        "intermediate_dim": config.intermediate_size,
        "max_seq_len": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "rope_base": config.rope_parameters["rope_theta"],
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def figures(config: PretrainedConfig) -> dict[str, object]:
    require_supported("random", config)
    model = random_model(config)
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (2, TOKENS)).astype(np.int32)
    tokens_BT[:, :40] = tokens_BT[0, :40]
    ours = TunePassModel(model)
    base = {name: each.clone() for name, each in base_to_tune(model.state_dict(), config).items()}
    expected = plain(lambda tokens: model(tokens).logits, tokens_BT)[:, :-1]
    found: dict[str, object] = {"base": gap(packed(ours, tokens_BT), expected)}
    if config.model_type == "llama" and config.rope_parameters["rope_type"] == "default":
        default = llama3_2(**shape(config)).eval()  # scale_factor is 32 unless it is given
        default.load_state_dict(base)
        wrong = plain(default, tokens_BT)[:, :-1]
        found["default_factor"] = gap(wrong, expected)
        found["default_factor_same_argmax"] = float((wrong.argmax(-1) == expected.argmax(-1)).float().mean())

    adapter = adapt(ours.decoder, model, LORA, "random")
    adapted, tensors = random_adapter(model)
    expected = plain(lambda tokens: adapted(tokens).logits, tokens_BT)[:, :-1]
    adapter.load(tensors)
    found["adapter"] = gap(packed(ours, tokens_BT), expected)
    tuned = peft_to_tune(tensors, config)
    found["peft_to_tune"] = gap(plain(builders_own(config, base | tuned), tokens_BT)[:, :-1], expected)
    back = tune_to_peft(tuned, config)
    found["back"] = back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in back)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.hidden_size)
    theirs = tune_to_peft_adapter_weights(dict(tuned), *heads)
    found["torchtune_export_is_right"] = all(torch.equal(theirs[name], tensors[name]) for name in tensors)
    return found


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


if __name__ == "__main__":
    print(json.dumps({name: figures(config) for name, config in MODELS.items()}))
