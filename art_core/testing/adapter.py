"""Small valid adapters in PEFT's layout for a given base model, written with numpy alone, and ways to damage them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG

Tensors = dict[str, NDArray[np.float32]]

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter looks like; the seed decides its values."""

    seed: int = 0
    rank: int = 4
    alpha: float = 8.0
    strength: float = 0.2
    """Standard deviation of B; A is of order 1 / sqrt(in). 0: equal to the base."""


def adaptable_modules(base_model: Path) -> dict[str, tuple[int, int]]:
    """Linear modules of a llama-like base model's layers, from its ``config.json``: name to (in, out)."""
    config = json.loads((base_model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, value = heads * head, (config.get("num_key_value_heads") or heads) * head
    layer = {
        "self_attn.q_proj": (hidden, query),
        "self_attn.k_proj": (hidden, value),
        "self_attn.v_proj": (hidden, value),
        "self_attn.o_proj": (query, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{n}.{name}": size for n in layers for name, size in layer.items()}


def write_adapter(base_model: Path, directory: Path, shape: AdapterShape) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        base_model: Directory of a llama-like base model.
        directory: Where to write; exists.
        shape: Rank, scale and seed.
    """
    rng = np.random.default_rng(shape.seed)
    tensors: Tensors = {}
    sites = adaptable_modules(base_model)
    for name, (size_in, size_out) in sites.items():
        a_RI = rng.normal(0, size_in**-0.5, (shape.rank, size_in))
        b_OR = rng.normal(0, 1, (size_out, shape.rank)) * shape.strength
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a_RI.astype(np.float32)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b_OR.astype(np.float32)
    save_file(tensors, directory / ADAPTER, {"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_model),
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in sites}),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1))


def edit_tensors(directory: Path, edit: Callable[[Tensors], object]) -> None:
    """Rewrite an adapter's tensors; the name-sorted first one is some module's A, the second the same one's B."""
    tensors: Tensors = load_file(directory / ADAPTER)
    edit(tensors)
    save_file(tensors, directory / ADAPTER, {"format": "pt"})


def edit_config(directory: Path, **values: object) -> None:
    """Replace entries of adapter_config.json."""
    path = directory / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _without_a_module(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".0.self_attn.o_proj." in name]:
        del tensors[name]


def _first(tensors: Tensors, value: float) -> None:
    tensors[min(tensors)][0, 0] = value


def _pickle_instead(directory: Path) -> None:
    (directory / ADAPTER).unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))


def _narrow(tensors: Tensors) -> None:
    name = min(tensors)
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])


def _foreign(tensors: Tensors) -> None:
    for kind in "AB":
        name = next(name for name in sorted(tensors) if f"lora_{kind}" in name)
        tensors[name.replace(".layers.0.", ".layers.9999.")] = tensors[name]


def _link(directory: Path) -> None:
    os.replace(directory / ADAPTER, directory / "elsewhere.safetensors")  # noqa: PTH105 - pairs with the link below
    (directory / ADAPTER).symlink_to("elsewhere.safetensors")


def _cut(directory: Path) -> None:
    os.truncate(directory / ADAPTER, (directory / ADAPTER).stat().st_size // 2)


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "a pickle instead of safetensors": _pickle_instead,
    "a pickle under the name of safetensors": lambda d: (d / ADAPTER).write_bytes(pickle.dumps({"weight": [1.0]})),
    "a NaN": lambda d: edit_tensors(d, lambda tensors: _first(tensors, np.nan)),
    "an infinite value": lambda d: edit_tensors(d, lambda tensors: _first(tensors, np.inf)),
    "a tensor of another shape": lambda d: edit_tensors(d, _narrow),
    "a rank that is not the tensors'": lambda d: edit_config(d, r=3),
    "a rank above the engine's": lambda d: edit_config(d, r=4096),
    "a layer without a module's tensors": lambda d: edit_tensors(d, _without_a_module),
    "an A without its B": lambda d: edit_tensors(d, lambda tensors: tensors.pop(sorted(tensors)[1])),
    "a module that the base model lacks": lambda d: edit_tensors(d, _foreign),
    "half a file": _cut,
    "a header longer than the file": lambda d: (d / ADAPTER).write_bytes(b"\xff" * 7 + b"\x00{}"),
    "a link": _link,
    "no tensor file": lambda d: (d / ADAPTER).unlink(),
    "no adapter_config.json": lambda d: (d / ADAPTER_CONFIG).unlink(),
    "an adapter_config.json that is no JSON": lambda d: (d / ADAPTER_CONFIG).write_text("{"),
    "an adapter_config.json of lists without end": lambda d: (d / ADAPTER_CONFIG).write_text("[" * 100_000),
}
"""What is wrong with an adapter, and what makes it so in a directory."""
