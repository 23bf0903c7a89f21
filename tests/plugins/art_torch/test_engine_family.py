"""Model families beyond Llama: the engine computes what transformers does, or refuses at the start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art_torch.options import TorchEngineOptions
from art_torch.serve.serving import Serving, ServingConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from art_core.errors import ConfigError
from tests.plugins.art_torch.engine_sample import Reference, answer, job, prompt, write_adapter

SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SERVED: dict[str, dict[str, Any]] = {
    "qwen2": {**GROUPED},
    "qwen3": {**GROUPED, "head_dim": 16},
    "mistral": {**GROUPED, "sliding_window": 12},
    "gemma3_text": {
        **GROUPED,
        "head_dim": 16,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {**GROUPED, "pad_token_id": 0},
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16},
    "gpt_neox": {**SIZES},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({**GROUPED, "head_dim": 16}, "softcap"),
    "mamba": ({"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "attention"),
}


def write(family: str, config: dict[str, Any], tiny_model: Path, directory: Path) -> Path:
    """A random model of a family, with the tiny model's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", SERVED)
async def test_logprobs_with_and_without_an_adapter(family: str, tiny_model: Path, tmp_path: Path) -> None:
    base = write(family, SERVED[family], tiny_model, tmp_path / "base")
    # PEFT's "all-linear" would adapt fused experts too, which are no linear modules.
    targets: Any = ["q_proj", "o_proj"] if "moe" in family else "all-linear"
    adapter = write_adapter(base, tmp_path / "a", seed=1, r=4, lora_alpha=8, target_modules=targets)
    config = ServingConfig(TorchEngineOptions(device="cpu", cpu_threads=1), str(base), "base", lora_rank=4)
    serving = Serving.load(config)
    loaded = serving.adapters.load("a", adapter)
    assert loaded.slot_digest == loaded.expected_digest
    serving.thread.start(asyncio.get_running_loop())
    reference = Reference(base, {"a": adapter})
    wanted = [("base", prompt(5, 1)), ("a", prompt(30, 2)), ("base", prompt(30, 2)), ("a", prompt(17, 3))]
    choices = await asyncio.gather(*(answer(serving, job(n, p, n=2, max_tokens=12)) for n, p in wanted))
    serving.thread.stop()
    for (name, p), pair in zip(wanted, choices, strict=True):
        for choice in pair:
            got = [token.logprob for token in choice.tokens]
            np.testing.assert_allclose(got, reference.sampled(name, p, choice), atol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_served_is_refused_at_the_start(family: str, tiny_model: Path, tmp_path: Path) -> None:
    config, message = REFUSED[family]
    base = write(family, config, tiny_model, tmp_path / "base")
    with pytest.raises(ConfigError, match=message):
        Serving.load(ServingConfig(TorchEngineOptions(device="cpu"), str(base), "base", lora_rank=4))
