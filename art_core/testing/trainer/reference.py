"""A llama-like model with a LoRA adapter in numpy and float64: what a trainer's own logprobs and gradients are held to.

It shares no line with any training library, so it can't be wrong in the same way. Llama and Qwen2 are written so:
RMS norm, rotary positions on the halves of a head, grouped queries, gated feed-forward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from art_core.batch import TrainBatch
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG

Array = NDArray[np.float64]
Weights = dict[str, Array]

_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter as its files say."""

    weights: Weights
    """PEFT's names."""
    scale: float

    @classmethod
    def read(cls, directory: Path) -> Adapter:
        """Read adapter_config.json and adapter_model.safetensors."""
        config = json.loads((directory / ADAPTER_CONFIG).read_text())
        weights = {name: each.astype(np.float64) for name, each in load_file(directory / ADAPTER).items()}
        return cls(weights, config["lora_alpha"] / config["r"])

    def moved(self, direction: Weights, distance: float) -> Adapter:
        """The adapter a way along a direction."""
        moved = {name: each + distance * direction[name] for name, each in self.weights.items()}
        return Adapter(moved, self.scale)


class ReferenceModel:
    """Computes logprobs of a base model with an adapter.

    Args:
        base_model: Directory in Hugging Face layout; float32 or float16 weights.
    """

    def __init__(self, base_model: Path) -> None:
        self._config: dict[str, Any] = json.loads((base_model / "config.json").read_text())
        self._base: Weights = {}
        for path in sorted(base_model.glob("*.safetensors")):
            self._base |= {name: each.astype(np.float64) for name, each in load_file(path).items()}
        heads, hidden = self._config["num_attention_heads"], self._config["hidden_size"]
        self._width = self._config.get("head_dim") or hidden // heads

    def logprobs(self, adapter: Adapter, tokens_BT: NDArray[np.int32], temperatures_BT: NDArray[np.float32]) -> Array:
        """Natural log, (B, T): of each token given those before it; 0 for the first.

        Args:
            adapter: On top of the base.
            tokens_BT: Padding stands at the end of a row, where no other token sees it.
            temperatures_BT: What each token's logits are divided by.
        """
        logits_BTV = self._logits(adapter, tokens_BT)[:, :-1] / temperatures_BT[:, 1:, None]
        top_BT1 = logits_BTV.max(-1, keepdims=True)
        log_total_BT = (np.log(np.exp(logits_BTV - top_BT1).sum(-1, keepdims=True)) + top_BT1)[..., 0]
        chosen_BT = np.take_along_axis(logits_BTV, tokens_BT[:, 1:, None].astype(np.int64), -1)[..., 0]
        return np.pad(chosen_BT - log_total_BT, ((0, 0), (1, 0)))

    def objective(self, adapter: Adapter, batch: TrainBatch) -> float:
        """Sum of advantage times logprob: what a step is to raise where every importance ratio is 1.

        Source: Williams 1992, REINFORCE (Machine Learning 8), section 4. PPO and CISPO have the same gradient there.
        """
        logprobs_BT = self.logprobs(adapter, batch.tokens_BT, batch.temperatures_BT)
        return float((batch.advantages_BT * logprobs_BT)[batch.loss_mask_BT].sum())

    def _logits(self, adapter: Adapter, tokens_BT: NDArray[np.int32]) -> Array:
        x_BTD = self._base["model.embed_tokens.weight"][tokens_BT]
        turn_T = self._rotation(tokens_BT.shape[1])
        for layer in range(self._config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            h_BTD = self._norm(f"{name}.input_layernorm", x_BTD)
            x_BTD = x_BTD + self._attention(adapter, f"{name}.self_attn", h_BTD, turn_T)
            h_BTD = self._norm(f"{name}.post_attention_layernorm", x_BTD)
            gate_BTF = self._linear(adapter, f"{name}.mlp.gate_proj", h_BTD)
            up_BTF = self._linear(adapter, f"{name}.mlp.up_proj", h_BTD)
            x_BTD = x_BTD + self._linear(adapter, f"{name}.mlp.down_proj", gate_BTF / (1 + np.exp(-gate_BTF)) * up_BTF)
        head = self._base.get("lm_head.weight", self._base["model.embed_tokens.weight"])
        logits_BTV: Array = self._norm("model.norm", x_BTD) @ head.T
        return logits_BTV

    def _attention(self, adapter: Adapter, name: str, x_BTD: Array, turn_T: tuple[Array, Array]) -> Array:
        q, k, v = (self._heads(self._linear(adapter, f"{name}.{each}_proj", x_BTD)) for each in "qkv")
        q, k = _turned(q, turn_T), _turned(k, turn_T)
        k, v = (np.repeat(each, q.shape[1] // k.shape[1], axis=1) for each in (k, v))
        scores_BHTT = q @ k.swapaxes(-1, -2) / math.sqrt(self._width)
        scores_BHTT = np.where(np.tri(q.shape[2], dtype=np.bool_), scores_BHTT, -np.inf)
        weight_BHTT = np.exp(scores_BHTT - scores_BHTT.max(-1, keepdims=True))
        seen_BTHW = (weight_BHTT / weight_BHTT.sum(-1, keepdims=True) @ v).swapaxes(1, 2)
        return self._linear(adapter, f"{name}.o_proj", seen_BTHW.reshape(*seen_BTHW.shape[:2], -1))

    def _heads(self, x_BTO: Array) -> Array:
        """(B, T, heads·width) to (B, heads, T, width)."""
        return x_BTO.reshape(*x_BTO.shape[:2], -1, self._width).swapaxes(1, 2)

    def _linear(self, adapter: Adapter, name: str, x_BTI: Array) -> Array:
        y_BTO = x_BTI @ self._base[f"{name}.weight"].T
        if (bias_O := self._base.get(f"{name}.bias")) is not None:
            y_BTO = y_BTO + bias_O
        a_RI = adapter.weights.get(f"{_PREFIX}{name}.lora_A.weight")
        if a_RI is not None:
            y_BTO = y_BTO + adapter.scale * (x_BTI @ a_RI.T) @ adapter.weights[f"{_PREFIX}{name}.lora_B.weight"].T
        return y_BTO

    def _norm(self, name: str, x_BTD: Array) -> Array:
        mean_BT1 = np.square(x_BTD).mean(-1, keepdims=True)
        scaled_BTD: Array = x_BTD / np.sqrt(mean_BT1 + self._config["rms_norm_eps"]) * self._base[f"{name}.weight"]
        return scaled_BTD

    def _rotation(self, length: int) -> tuple[Array, Array]:
        """Cosine and sine of every position's angles, (T, width / 2) each."""
        rotary: Mapping[str, Any] = self._config.get("rope_parameters") or {"rope_type": "default", **self._config}
        assert rotary["rope_type"] == "default", f"rope_type {rotary['rope_type']!r}: give the kit a model without it"
        frequency_W = rotary["rope_theta"] ** (-np.arange(0, self._width, 2) / self._width)
        angle_TW = np.arange(length)[:, None] * frequency_W
        return np.cos(angle_TW), np.sin(angle_TW)


def _turned(x_BHTW: Array, turn_T: tuple[Array, Array]) -> Array:
    cos, sin = turn_T
    low, high = np.split(x_BHTW, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
