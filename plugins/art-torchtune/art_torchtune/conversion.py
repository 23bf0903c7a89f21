"""Weights between Hugging Face's layout and torchtune's: a base model's into torchtune, an adapter's both ways.

Names differ, and where torchtune's rotary positions turn neighbours (`architecture.turns_pairs`), so does the order of
the rows of query and key projections. An adapter's A reads what the layer before it wrote, so it stays as it is; the
rows of its B go with those of the weight that it is added to. Torchtune's own ``tune_to_peft_adapter_weights`` reorders
them for Qwen2 too, whose rows stand in their order already, and it has no way back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchtune.models.convert_weights import hf_to_tune
from torchtune.models.qwen2 import qwen2_hf_to_tune
from transformers import PretrainedConfig

from art_core.adapter_file import PREFIX
from art_core.errors import CheckpointCorruptError
from art_torchtune.architecture import head_width, turns_pairs

_MODULES = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w3",
    "mlp.down_proj": "mlp.w2",
}
"""Within a layer: Hugging Face's name of a linear module to torchtune's."""
_KINDS = {"lora_A.weight": "lora_a.weight", "lora_B.weight": "lora_b.weight"}


def base_to_tune(weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """A base model's weights under torchtune's names and in its order; tensors without a row order are not copied.

    Args:
        weights: The state of a transformers model.
        config: The model's, which passed `architecture.require_supported`.
    """
    tied = config.tie_word_embeddings
    own = {name: each for name, each in weights.items() if not (tied and name == "lm_head.weight")}
    convert = hf_to_tune if turns_pairs(config) else qwen2_hf_to_tune
    shape = (config.num_attention_heads, config.num_key_value_heads, config.hidden_size)
    converted: dict[str, Tensor] = convert(own, *shape)
    return converted


def peft_to_tune(tensors: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """An adapter out of PEFT's file, for the modules of a model that torchtune's ``lora_`` builders have built.

    Args:
        tensors: By PEFT's names.
        config: The base model's.

    Raises:
        CheckpointCorruptError: A tensor is not of a module that torchtune adapts.
    """
    converted = {}
    for key, tensor in tensors.items():
        module, kind = _split(key.removeprefix(PREFIX), key, _KINDS)
        rows_O = row_order(module, config) if kind == "lora_B.weight" else None
        name = f"{tune_module(module)}.{_KINDS[kind]}"
        converted[name] = tensor if rows_O is None else tensor.index_select(0, rows_O.to(tensor.device))
    return converted


def tune_to_peft(tensors: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """The reverse of `peft_to_tune`, bit for bit.

    Args:
        tensors: By torchtune's names, as its recipes save them.
        config: The base model's.

    Raises:
        CheckpointCorruptError: A tensor is not of a module that torchtune adapts.
    """
    kinds = {tune: peft for peft, tune in _KINDS.items()}
    converted = {}
    for key, tensor in tensors.items():
        tuned, kind = _split(key, key, kinds)
        module = _renamed(tuned, {tune: peft for peft, tune in _MODULES.items()}, key)
        module = f"model.{module}"
        rows_O = row_order(module, config) if kind == "lora_b.weight" else None
        name = f"{PREFIX}{module}.{kinds[kind]}"
        converted[name] = tensor if rows_O is None else tensor.index_select(0, rows_O.argsort().to(tensor.device))
    return converted


def tune_module(module: str) -> str:
    """What torchtune calls a linear module of a layer.

    Args:
        module: Hugging Face's name, e.g. ``model.layers.0.self_attn.o_proj``.
    """
    return _renamed(module.removeprefix("model."), _MODULES, module)


def row_order(module: str, config: PretrainedConfig) -> Tensor | None:
    """Which of the module's rows torchtune has at each place, int64; None where it has the same order.

    Args:
        module: Hugging Face's name.
        config: The base model's.
    """
    kind = module.rpartition(".")[2]
    if kind not in ("q_proj", "k_proj") or not turns_pairs(config):
        return None
    heads = config.num_attention_heads if kind == "q_proj" else config.num_key_value_heads
    width = head_width(config)
    return torch.arange(heads * width).view(heads, 2, width // 2).transpose(1, 2).flatten()


def _split(name: str, key: str, kinds: Mapping[str, str]) -> tuple[str, str]:
    module, dot, kind = name.rpartition(".lora_")
    kind = f"lora_{kind}"
    if not dot or kind not in kinds:
        raise _unknown(key)
    return module, kind


def _renamed(name: str, names: Mapping[str, str], key: str) -> str:
    """Rename ``layers.<n>.<module>``."""
    layers, number, *rest = name.split(".")
    if layers != "layers" or not number.isdigit() or (renamed := names.get(".".join(rest))) is None:
        raise _unknown(key)
    return f"layers.{number}.{renamed}"


def _unknown(key: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"tensor {key!r} is no LoRA weight of a linear module that torchtune's layers have; allowed: "
        f"{', '.join(_MODULES)}",
        stage="train",
    )
