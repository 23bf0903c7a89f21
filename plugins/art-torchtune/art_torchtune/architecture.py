"""Which base models torchtune's decoders can compute, and the decoder for one. Others are refused by their config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchtune.models.llama3_1 import Llama3ScaledRoPE
from torchtune.models.llama3_2 import llama3_2
from torchtune.models.qwen2 import Qwen2RotaryPositionalEmbeddings, qwen2
from torchtune.modules import RotaryPositionalEmbeddings, TransformerDecoder
from transformers import PretrainedConfig

from art_core.errors import ConfigError

_BUILDERS: Mapping[str, Callable[..., TransformerDecoder]] = {
    "llama": llama3_2,
    "mistral": llama3_2,  # torchtune's Mistral is the same decoder, but can't tie its embeddings
    "qwen2": qwen2,
}
"""Transformers' model type to torchtune's builder."""

SUPPORTED = "Llama (2, 3.x and shaped like them), Mistral, Qwen2 and Qwen2.5"

_NEUTRAL: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
}
"""Settings that change what a model computes and that torchtune's builders lack, and the value for "not used"."""


def require_supported(base_model: str, config: PretrainedConfig) -> None:
    """Refuse a base model that torchtune has no decoder for.

    Args:
        base_model: Its name, for the message.
        config: Its config.

    Raises:
        ConfigError: Names what was seen and what is supported.
    """
    settings = config.to_dict()
    if config.model_type not in _BUILDERS:
        raise _unsupported(base_model, f"model_type {config.model_type!r}")
    for key, neutral in _NEUTRAL.items():
        if settings.get(key) not in (None, neutral):
            raise _unsupported(base_model, f"{key} {settings[key]!r}")
    width = head_width(config)
    if width * config.num_attention_heads != config.hidden_size:
        raise _unsupported(base_model, f"{config.num_attention_heads} heads of {width} for {config.hidden_size} units")
    if (kind := _rotary(config)["rope_type"]) != "default" and (config.model_type, kind) != ("llama", "llama3"):
        raise _unsupported(base_model, f"rope_type {kind!r}")


def turns_pairs(config: PretrainedConfig) -> bool:
    """Whether the decoder's rotary positions turn neighbours (0, 1), (2, 3), … of a head, not its two halves.

    Transformers always turns halves. Where torchtune turns neighbours, the rows of its query and key projections stand
    in another order; its Qwen2 turns halves.
    """
    return config.model_type != "qwen2"


def build_decoder(config: PretrainedConfig, device: torch.device) -> TransformerDecoder:
    """The decoder for a config, its weights on the meta device: they are to be assigned.

    Args:
        config: Passed `require_supported`.
        device: Where the model will be; the table of rotary positions is made there.
    """
    with torch.device("meta"):
        decoder = _BUILDERS[config.model_type](
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            embed_dim=config.hidden_size,
            intermediate_dim=config.intermediate_size,
            max_seq_len=config.max_position_embeddings,
            norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    positions = _positions(config).to(device)
    for layer in decoder.layers:
        layer.attn.pos_embeddings = positions
    return decoder


def _positions(config: PretrainedConfig) -> nn.Module:
    """The rotary positions of the config's own frequencies; the builders know only of a factor (32 unless told)."""
    rotary = _rotary(config)
    shape = {"dim": head_width(config), "max_seq_len": config.max_position_embeddings, "base": rotary["rope_theta"]}
    positions: nn.Module
    if not turns_pairs(config):
        positions = Qwen2RotaryPositionalEmbeddings(**shape)
    elif rotary["rope_type"] == "default":
        positions = RotaryPositionalEmbeddings(**shape)
    else:
        positions = Llama3ScaledRoPE(
            **shape,
            scale_factor=rotary["factor"],
            low_freq_factor=rotary["low_freq_factor"],
            high_freq_factor=rotary["high_freq_factor"],
            old_context_len=rotary["original_max_position_embeddings"],
        )
    return positions


def _rotary(config: PretrainedConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = config.rope_parameters
    return parameters


def head_width(config: PretrainedConfig) -> int:
    """Units of one attention head."""
    width: int | None = config.to_dict().get("head_dim")
    return width or config.hidden_size // config.num_attention_heads


def _unsupported(base_model: str, seen: str) -> ConfigError:
    return ConfigError(
        f"base model {base_model!r} has {seen}, which torchtune's decoders don't compute; trainer 'torchtune' takes "
        f"{SUPPORTED}; use trainer 'torch' for others"
    )
