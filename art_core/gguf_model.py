"""A Llama model from a GGUF file, written in Hugging Face layout without any training library.

GGUF is llama.cpp's format: one file with quantised tensors, the tokenizer's tables and the chat template. A
trainer needs the same model as float32 safetensors and a ``tokenizer.json``.

Source: GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_core.errors import ConfigError, nearest

_log = logging.getLogger("art.gguf_model")

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PRE_TOKENIZERS: dict[str, bool] = {"gpt-2": False, "smollm": True}
"""Name in ``tokenizer.ggml.pre`` to whether every digit is a token of its own."""
_CONTROL, _USER_DEFINED = 3, 4
"""Values of ``tokenizer.ggml.token_type`` for tokens that text is cut at before anything else."""


@dataclass(frozen=True)
class _Source:
    """An open GGUF file: its metadata as plain values and its quantised tensors by name."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """The metadata value, refused by name where it is missing."""
        if key not in self.values:
            raise ConfigError(f"{self.path.name} has no metadata {key!r}; a Llama model in GGUF has it")
        return self.values[key]


def require_libraries() -> None:
    """Fail early where the optional libraries of the conversion are missing.

    Raises:
        ConfigError: ``gguf`` or ``tokenizers`` is not installed.
    """
    try:
        import gguf  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"converting a GGUF model needs {error.name!r}, which is not installed; try: pip install 'art-core[demo]'"
        ) from error


def convert_gguf(path: Path, directory: Path) -> None:
    """Write the model of a GGUF file as ``config.json``, ``model.safetensors`` (float32) and tokenizer files.

    Tensors are dequantised one at a time, so memory stays near the size of the largest.

    Args:
        path: The GGUF file: Llama architecture, GPT-2 style byte-level BPE.
        directory: Where to write; must exist.

    Raises:
        ConfigError: A library is missing, or the file is damaged or holds something else.
    """
    require_libraries()
    source = _read(path)
    config = _config(source)
    names = _tensor_names(source, config["num_hidden_layers"])
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", {k: v for k, v in config.items() if k.endswith("_token_id")})
    _write_tokenizer(source, directory / "tokenizer.json")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(source, config))
    _write_weights(source, names, config, directory / "model.safetensors")


def _read(path: Path) -> _Source:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} can't be read as GGUF: {error}; fetch it again") from error
    source = _Source(path, values, tensors)
    for key, known in (("general.architecture", {"llama"}), ("tokenizer.ggml.model", {"gpt2"})):
        if source.value(key) not in known:
            raise ConfigError(f"{path.name}: {key} is {values[key]!r}; {nearest(str(values[key]), known)}")
    return source


def _config(source: _Source) -> dict[str, Any]:
    heads, hidden = source.value("llama.attention.head_count"), source.value("llama.embedding_length")
    theta = float(source.value("llama.rope.freq_base"))
    # The file stores float32; the shortest decimal that rounds to it is what the model's authors wrote.
    epsilon = float(str(np.float32(source.value("llama.attention.layer_norm_rms_epsilon"))))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": source.value("llama.feed_forward_length"),
        "num_hidden_layers": source.value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.values.get("llama.attention.head_count_kv", heads),
        "head_dim": hidden // heads,
        "max_position_embeddings": source.value("llama.context_length"),
        "rms_norm_eps": epsilon,
        # Two spellings of one number: libraries before and after transformers 5 read different keys.
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "vocab_size": len(source.value("tokenizer.ggml.tokens")),
        "bos_token_id": source.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.values.get(
            "tokenizer.ggml.padding_token_id", source.value("tokenizer.ggml.eos_token_id")
        ),
        "dtype": "float32",
    }


def _tensor_names(source: _Source, layers: int) -> dict[str, str]:
    """GGUF name to Hugging Face name, in file order; every tensor is known and none is missing."""
    expected = {f"blk.{layer}.{name}.weight" for layer in range(layers) for name in _LAYER_NAMES}
    expected |= _OUTER_NAMES.keys() - {"output.weight"}
    seen = source.tensors.keys() - {"output.weight"}
    if seen != expected:
        odd = sorted(seen ^ expected)
        raise ConfigError(
            f"{source.path.name} is no plain Llama model: {len(odd)} tensors missing or unknown, first {odd[0]!r}"
        )
    return {name: _new_name(name) for name in source.tensors}


def _new_name(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    return f"model.layers.{block[1]}.{_LAYER_NAMES[block[2]]}.weight" if block else _OUTER_NAMES[name]


def _write_weights(source: _Source, names: Mapping[str, str], config: Mapping[str, Any], path: Path) -> None:
    """Write safetensors: 8 bytes of header length, the header as JSON, then the tensors end to end.

    Source: https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, new_name in names.items():
        shape = [int(n) for n in reversed(source.tensors[name].shape)]
        start, end = end, end + 4 * int(np.prod(shape))
        header[new_name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _log.info("writing %s: %d tensors, %.0f MB", path.name, len(names), end / 1e6)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_weight(source.tensors[name], config).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _weight(tensor: Any, config: Mapping[str, Any]) -> NDArray[np.float32]:
    from gguf import dequantize

    weight: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype("<f4", copy=False)
    if tensor.name.endswith("attn_q.weight"):
        return _unpermute(weight, config["num_attention_heads"])
    if tensor.name.endswith("attn_k.weight"):
        return _unpermute(weight, config["num_key_value_heads"])
    return weight


def _unpermute(weight_OI: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's row order of q and k: it pairs the two halves of each head that rotary embedding mixes.

    Args:
        weight_OI: Float32 [out, in]; ``out`` is heads × head size.
        heads: Heads of this projection.
    """
    pairs_HRPI = weight_OI.reshape(heads, -1, 2, weight_OI.shape[1])
    return pairs_HRPI.swapaxes(1, 2).reshape(weight_OI.shape)


def _write_tokenizer(source: _Source, path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = source.value("tokenizer.ggml.tokens")
    pre = source.value("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise ConfigError(f"{source.path.name}: tokenizer.ggml.pre is {pre!r}; {nearest(str(pre), _PRE_TOKENIZERS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in source.value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if _PRE_TOKENIZERS[pre] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, source.value("tokenizer.ggml.token_type"), strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    tokenizer.save(str(path))


def _tokenizer_config(source: _Source, config: Mapping[str, Any]) -> dict[str, Any]:
    tokens = source.value("tokenizer.ggml.tokens")
    found: dict[str, Any] = {
        # A class that takes tokenizer.json as it stands; "GPT2Tokenizer" would rebuild the pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
    }
    if "tokenizer.ggml.unknown_token_id" in source.values:
        found["unk_token"] = tokens[source.values["tokenizer.ggml.unknown_token_id"]]
    if "tokenizer.chat_template" in source.values:
        found["chat_template"] = source.values["tokenizer.chat_template"]
    return found


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
