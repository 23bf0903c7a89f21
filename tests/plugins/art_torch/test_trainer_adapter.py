"""The adapter: what is adapted, how it starts, what its files are, and which files are refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from art_torch.options import TorchTrainerOptions
from art_torch.tensor_file import read_metadata
from art_torch.train.adapter import target_modules
from art_torch.trainer import TorchTrainer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, CheckpointError, ConfigError
from art_core.step import StepConfig
from tests.plugins.art_torch.trainer_case import LORA, digests, make_batch, saved, spec, started

PROJECTIONS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ADAPTER, CONFIG, OPTIMIZER = "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"


@pytest.fixture(scope="module")
async def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a trainer that made one step."""
    trainer = await started(tiny_model)
    await trainer.step(make_batch(), StepConfig(learning_rate=1e-2))
    return await saved(trainer, tmp_path_factory.mktemp("trained") / "1")


async def test_a_fresh_adapter_adapts_every_layer_linear_from_the_seed_and_equals_the_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    one = await saved(await started(tiny_model), tmp_path / "one")
    tensors = load_file(one / ADAPTER)
    names = {name.removesuffix(".weight").rpartition(".lora_")[0] for name in tensors}
    blocks = {p: "mlp" if p in ("down_proj", "gate_proj", "up_proj") else "self_attn" for p in PROJECTIONS}
    assert names == {f"base_model.model.model.layers.{i}.{b}.{p}" for i in (0, 1) for p, b in blocks.items()}
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert (tensor.abs().max() > 0) == ("lora_A" in name), name
    other = TorchTrainer(TorchTrainerOptions(device="cpu"))
    await other.start(spec(tiny_model, replace(LORA, random_state=1)), None)
    two = await saved(other, tmp_path / "two")
    again = await saved(await started(tiny_model), tmp_path / "again")
    assert digests(one) == digests(again)
    assert digests(one)[ADAPTER] != digests(two)[ADAPTER]


async def test_peft_loads_the_files_and_computes_what_the_trainer_does(tiny_model: Path, trained: Path) -> None:
    trainer = await started(tiny_model, trained)
    batch = make_batch(seed=3)
    probe = (await trainer.step(batch, StepConfig())).probe
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    plain = PeftModel.from_pretrained(base, trained)
    for tokens, scored, before in zip(probe.tokens, probe.scored, probe.before, strict=True):
        tokens_T = torch.from_numpy(tokens).long()
        with torch.no_grad():
            logprobs = plain(input_ids=tokens_T[None]).logits[0, :-1].log_softmax(-1)
            unadapted = base(input_ids=tokens_T[None]).logits
        picked = logprobs.gather(1, tokens_T[1:, None])[:, 0].numpy()
        assert abs(picked[scored[1:]] - before[scored]).max() < 1e-5
        assert unadapted.isfinite().all()
    config = json.loads((trained / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8.0, PROJECTIONS)
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["bias"] == "none"
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert sorted(path.name for path in trained.iterdir()) == [CONFIG, ADAPTER, OPTIMIZER]


async def test_targets_narrow_what_is_adapted(tiny_model: Path, tmp_path: Path) -> None:
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu"))
    lora = LoRAConfig(rank=2, target_modules=["q_proj", "model.layers.1.mlp.down_proj"])
    await trainer.start(spec(tiny_model, lora), None)
    await trainer.step(make_batch(), StepConfig(learning_rate=1e-2))
    directory = await saved(trainer, tmp_path / "narrow")
    modules = {name.rpartition(".lora_")[0] for name in load_file(directory / ADAPTER)}
    prefix = "base_model.model.model.layers"
    assert modules == {f"{prefix}.0.self_attn.q_proj", f"{prefix}.1.self_attn.q_proj", f"{prefix}.1.mlp.down_proj"}
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), directory)
    inside = {n.removesuffix(".lora_A.default") for n, _ in adapted.named_modules() if n.endswith(".lora_A.default")}
    assert inside == modules


@pytest.mark.parametrize("target", ["q_porj", "lm_head", "embed_tokens", "proj", "layers.0"])
async def test_a_target_that_matches_no_layer_linear_is_refused_by_name(tiny_model: Path, target: str) -> None:
    trainer = TorchTrainer(TorchTrainerOptions(device="cpu"))
    with pytest.raises(ConfigError, match=rf"LoRA target '{target}' matches no .*LlamaForCausalLM.*q_proj"):
        await trainer.start(spec(tiny_model, LoRAConfig(target_modules=["k_proj", target])), None)


def test_a_model_without_linear_layers_is_refused() -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, bos_token_id=0, eos_token_id=0)
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear"):
        target_modules(GPT2LMHeadModel(config), LORA)


def _overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def _change(file: str, tensor: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / file)
        name = next(name for name in sorted(tensors) if tensor in name)
        changed = change(tensors.pop(name))
        metadata = read_metadata(directory / file)
        save_file(tensors if changed is None else tensors | {name: changed}, directory / file, metadata)

    return apply


def _add(file: str, name: str) -> Callable[[Path], None]:
    return lambda directory: save_file(load_file(directory / file) | {name: torch.zeros(1)}, directory / file)


def _config(**values: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        settings = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(settings | values))

    return apply


def _link(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).rename(directory / "elsewhere")
        (directory / name).symlink_to(directory / "elsewhere")

    return apply


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[1] = float("nan")
    return tensor


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


DAMAGE = {
    "a pickle in place": (_overwrite(ADAPTER, pickle.dumps(_Bomb())), f"{ADAPTER} .*not a safetensors file"),
    "a pickle beside": (_overwrite("adapter_model.bin", pickle.dumps(_Bomb())), r"adapter_model\.bin, a pickle"),
    "a pickled optimizer": (_overwrite(OPTIMIZER, pickle.dumps({})), f"{OPTIMIZER} .*not a safetensors file"),
    "no adapter": (lambda directory: (directory / ADAPTER).unlink(), f"{ADAPTER} .*No such file"),
    "no config": (lambda directory: (directory / CONFIG).unlink(), f"{CONFIG} .*No such file"),
    "an empty file": (_overwrite(ADAPTER, b""), f"{ADAPTER} .*not a safetensors file"),
    "a linked adapter": (_link(ADAPTER), f"{ADAPTER} .*regular file"),
    "a linked config": (_link(CONFIG), f"{CONFIG} .*regular file"),
    "a linked optimizer": (_link(OPTIMIZER), f"{OPTIMIZER} .*regular file"),
    "a NaN": (_change(ADAPTER, "lora_B", _nan), r"lora_B\.weight' has a NaN"),
    "a NaN moment": (_change(OPTIMIZER, "exp_avg.", _nan), r"exp_avg\.base_model.*has a NaN"),
    "a negative second moment": (_change(OPTIMIZER, "exp_avg_sq.", lambda t: -t - 1), "exp_avg_sq.*negative"),
    "another shape": (_change(ADAPTER, "lora_A", lambda t: t[:, :-1].contiguous()), r"lora_A.*\[4, \d+\].*\[4, \d+\]"),
    "another dtype": (_change(ADAPTER, "lora_A", lambda t: t.half()), "lora_A.*torch.float16.*torch.float32"),
    "a missing tensor": (_change(ADAPTER, "lora_A", lambda _: None), "lora_A.* is missing"),
    "an unexpected tensor": (_add(ADAPTER, "base_model.model.lm_head.lora_A.weight"), "lm_head.* is not expected"),
    "another rank": (_config(r=8), f"{CONFIG}: r is 8; .*started with 4"),
    "another scale": (_config(lora_alpha=16), f"{CONFIG}: lora_alpha is 16; .*started with 8"),
    "another formula": (_config(use_dora=True), "use_dora is True"),
    "no JSON": (_overwrite(CONFIG, b"{"), f"{CONFIG} .*not JSON"),
    "a JSON list": (_overwrite(CONFIG, b"[]"), f"{CONFIG} .*not a JSON object"),
    "a huge file": (lambda directory: os.truncate(directory / ADAPTER, 1 << 30), f"{ADAPTER} .*at most"),
}


@pytest.fixture(scope="module")
async def victim(tiny_model: Path) -> TorchTrainer:
    return await started(tiny_model)


@pytest.mark.parametrize("name", DAMAGE)
async def test_damaged_files_are_refused_by_name_and_change_nothing(
    victim: TorchTrainer, tiny_model: Path, trained: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = DAMAGE[name]
    directory = tmp_path / "damaged"
    directory.mkdir()
    for path in trained.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    damage(directory)
    monkeypatch.chdir(tmp_path)
    before = victim._learner.files()
    with pytest.raises(CheckpointCorruptError, match=message):
        await victim.start(spec(tiny_model), directory)
    assert victim._learner.files() == before
    assert not (tmp_path / "exploded").exists()
    await victim.start(spec(tiny_model), trained)
    assert digests(await saved(victim, tmp_path / "whole")) == digests(trained)


async def test_save_names_the_path_and_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    trainer = await started(tiny_model)
    with pytest.raises(CheckpointError, match=r"absent/adapter_config\.json can't be written: No such file"):
        await trainer.save(tmp_path / "absent")
