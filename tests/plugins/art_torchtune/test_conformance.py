"""The torchtune trainer keeps every promise on a Llama, and those about numbers on a Qwen2 and in bfloat16 too."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from art_torchtune.options import TorchtuneTrainerOptions
from transformers import (
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from art_core.checkpoint import ADAPTER, OPTIMIZER
from art_core.errors import ConfigError
from art_core.part import TrainerPart
from art_core.plugins import load_part
from art_core.testing import TrainerConformance, TrainerParity
from art_core.testing.condition import until
from art_core.testing.trainer.bench import LARGE, TrainerBench
from tests.plugins.art_torchtune.kill import killed

pytestmark = pytest.mark.heavy


SIZE = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
UNSUPPORTED: dict[str, PretrainedConfig] = {
    "model_type 'gpt2'": GPT2Config(vocab_size=258, n_embd=64, n_layer=1, n_head=4),
    "attention_bias True": LlamaConfig(**SIZE, attention_bias=True),
    "hidden_act 'gelu'": LlamaConfig(**SIZE, hidden_act="gelu"),
    "4 heads of 32 for 64 units": LlamaConfig(**SIZE, head_dim=32),
    "rope_type 'linear'": LlamaConfig(**SIZE, rope_parameters=LINEAR),
    "sliding_window 128": MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=128),
}


class Torchtune:
    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        return cast(TrainerPart, load_part("trainer", "torchtune"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, torchtune_options: TorchtuneTrainerOptions) -> TorchtuneTrainerOptions:
        return torchtune_options


class TestTorchtuneOnLlama(Torchtune, TrainerConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model

    async def test_killed_mid_save_it_starts_again_from_the_last_whole_checkpoint(self, bench: TrainerBench) -> None:
        await bench.trainer.step(bench.batch(0), LARGE)
        whole, cut = await bench.saved(), bench.directory()
        await bench.trainer.step(bench.batch(1), LARGE)
        os.mkfifo(cut / OPTIMIZER)  # whoever writes it waits for a reader
        save = asyncio.create_task(bench.trainer.save(cut))
        await until((cut / ADAPTER).exists, "the save has begun")
        await killed(bench.trainer.process_id, save)
        await bench.reset(whole)
        assert await bench.state() == {name: (whole / name).read_bytes() for name in (ADAPTER, OPTIMIZER)}
        assert (await bench.trainer.step(bench.batch(1), LARGE)).updated

    async def test_a_base_model_that_torchtune_has_not_is_refused_before_its_weights_are_read(
        self, bench: TrainerBench, tmp_path: Path
    ) -> None:
        for number, (seen, config) in enumerate(UNSUPPORTED.items()):
            directory = tmp_path / str(number)  # no weights in it
            config.save_pretrained(directory)
            message = f"{seen}, .*takes Llama .*, Mistral, Qwen2 and Qwen2.5; use trainer 'torch'"
            with pytest.raises(ConfigError, match=message):
                await bench.trainer.start(replace(bench.spec, base_model=str(directory)), None)


class TestTorchtuneInBfloat16(Torchtune, TrainerParity):
    """As on a GPU, and with layers recomputed."""

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, torchtune_options: TorchtuneTrainerOptions) -> TorchtuneTrainerOptions:
        return torchtune_options.model_copy(update={"dtype": "bfloat16", "gradient_checkpointing": True})

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path) -> Path:
        return tiny_model


class TestTorchtuneOnQwen2(Torchtune, TrainerParity):
    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        directory = tmp_path_factory.mktemp("tiny-qwen2")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=258,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(directory)
        return directory
