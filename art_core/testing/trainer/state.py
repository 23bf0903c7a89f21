"""What starting, saving and stopping promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from safetensors import safe_open
from safetensors.numpy import load_file

from art_core.base_model import base_digest
from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER
from art_core.config import LoRAConfig
from art_core.errors import CapabilityError, CheckpointError, ConfigError
from art_core.testing.adapter import adaptable_modules
from art_core.testing.family import survivors
from art_core.testing.promise import promised, refused
from art_core.testing.trainer.bench import LARGE, TrainerBench, TrainerCase


class TrainerStates(TrainerCase):
    """Tests of `start`, `save` and what they keep."""

    async def test_start_says_which_base_model_it_holds(self, bench: TrainerBench) -> None:
        """`start` returns the base model's identity and the versions that every manifest records."""
        model = bench.info.model
        promised(
            model.identity.digest == base_digest(bench.base_model), "identity.digest is base_digest", model.identity
        )
        promised(model.vocab_size > 0 and model.context_tokens > 0, "vocabulary and context are known", model)
        versions = bench.info.versions
        promised(versions and all(versions.values()), "versions of the libraries are told", versions)

    async def test_a_fresh_adapter_equals_the_base(self, bench: TrainerBench) -> None:
        """Without `resume_from` the adapter is fresh: B·A = 0 in every module."""
        tensors = load_file((await bench.saved()) / ADAPTER)
        for name in tensors:
            if ".lora_A." in name:
                update = tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name]
                promised(not update.any(), "a fresh adapter equals the base", name)

    async def test_saved_files_are_peft_layout_and_safetensors(self, bench: TrainerBench) -> None:
        """`save` writes three regular files, the tensors as PEFT's lora_A (r, in) and lora_B (out, r)."""
        await bench.trainer.step(bench.batch(), LARGE)
        directory = await bench.saved()
        files = {path.name for path in directory.iterdir() if path.is_file() and not path.is_symlink()}
        promised({ADAPTER, ADAPTER_CONFIG} <= files <= {ADAPTER, ADAPTER_CONFIG, OPTIMIZER}, "save's files", files)
        config, lora = json.loads((directory / ADAPTER_CONFIG).read_text()), bench.spec.lora
        shape = (config["peft_type"], config["r"], config["lora_alpha"])
        promised(shape == ("LORA", lora.rank, lora.alpha), "adapter_config.json has the spec's shape", shape)
        expected = {}
        for name, (size_in, size_out) in adaptable_modules(bench.base_model).items():
            expected[f"base_model.model.{name}.lora_A.weight"] = (lora.rank, size_in)
            expected[f"base_model.model.{name}.lora_B.weight"] = (size_out, lora.rank)
        tensors = load_file(directory / ADAPTER)
        wrong = {name: each.shape for name, each in tensors.items() if expected.get(name) != each.shape}
        promised(tensors and not wrong, "tensors have PEFT's names and shapes", wrong)
        promised(all(np.isfinite(each).all() for each in tensors.values()), "saved tensors are finite")
        if OPTIMIZER in files:
            with safe_open(directory / OPTIMIZER, "numpy") as file:
                promised("layout" in (file.metadata() or {}), "save labels the layout of the optimizer's state")

    async def test_starting_again_resets_exactly(self, bench: TrainerBench) -> None:
        """`start` may be called again at any time: weights and optimizer are as after the first start."""
        fresh = await bench.state()
        await bench.trainer.step(bench.batch(), LARGE)
        await bench.reset()
        promised(await bench.state() == fresh, "start without resume_from resets weights and optimizer exactly")

    async def test_the_same_batches_give_the_same_bits(self, bench: TrainerBench) -> None:
        """On one CPU machine the same seed, state and batch give a bit-identical adapter."""
        states = []
        for _ in range(2):
            await bench.reset()
            for seed in range(2):
                await bench.trainer.step(bench.batch(seed), LARGE)
            states.append(await bench.state())
        promised(states[0] == states[1], "the same seed, state and batches give bit-identical files")

    async def test_a_save_that_can_not_be_written_is_refused(self, bench: TrainerBench, tmp_path: Path) -> None:
        """`save` into what is no directory is a CheckpointError; the trainer goes on."""
        with refused(CheckpointError, "save refuses a directory that is not there"):
            await bench.trainer.save(tmp_path / "missing")
        await bench.saved()


class TrainerLife(TrainerCase):
    """Tests of bad specs, undeclared capabilities and the end. These come last: they end the class's trainer."""

    async def test_a_base_model_that_is_not_there_is_refused(self, bench: TrainerBench, tmp_path: Path) -> None:
        """`start` with a base model that is missing or no causal LM is a ConfigError; another start then works."""
        (tmp_path / "empty").mkdir()
        for name in ("missing", "empty"):
            with refused(ConfigError, f"start refuses a base model directory that is {name}"):
                await bench.trainer.start(replace(bench.spec, base_model=str(tmp_path / name)), None)
        await bench.reset()
        await bench.trainer.step(bench.batch(), LARGE)

    async def test_a_target_that_matches_nothing_is_refused(self, bench: TrainerBench) -> None:
        """A LoRA target that matches no module is a ConfigError."""
        for target in ("no_such_proj", "lm_head", "embed_tokens"):
            lora = LoRAConfig(rank=4, target_modules=("q_proj", target))
            with refused(ConfigError, f"start refuses the LoRA target {target!r}"):
                await bench.trainer.start(replace(bench.spec, lora=lora), None)
        await bench.reset()

    async def test_target_modules_are_those_that_are_adapted(self, bench: TrainerBench) -> None:
        """`LoRAConfig.target_modules` names the modules that are adapted, and no other."""
        lora = LoRAConfig(rank=2, target_modules=("q_proj", "down_proj"))
        await bench.trainer.start(replace(bench.spec, lora=lora), None)
        tensors = load_file((await bench.saved()) / ADAPTER)
        words = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}
        promised(words == {"q_proj", "down_proj"}, "the targets that were named are adapted", words)

    async def test_what_is_not_declared_is_refused(self, bench: TrainerBench) -> None:
        """OFFLOAD, where undeclared, is a CapabilityError."""
        if Capability.OFFLOAD not in bench.capabilities:
            with refused(CapabilityError, "offload is refused where OFFLOAD is not declared"):
                await bench.trainer.offload()
            with refused(CapabilityError, "onload is refused where OFFLOAD is not declared"):
                await bench.trainer.onload()

    async def test_nothing_is_left_after_stop(self, bench: TrainerBench) -> None:
        """After `stop` none of the trainer's processes is left, so all memory is free again."""
        await bench.trainer.step(bench.batch(), LARGE)
        before = {process.pid: process for process in psutil.Process().children(recursive=True)}
        await bench.trainer.stop()
        left = {process.pid for process in psutil.Process().children(recursive=True)}
        ended = [process for pid, process in before.items() if pid not in left]
        promised(ended, "stop ends the trainer's process")
        orphans = await survivors(ended)
        promised(not orphans, "stop ends every process that the trainer has started", orphans)

    async def test_it_stops_twice_and_starts_again(self, bench: TrainerBench) -> None:
        """`stop` is idempotent; `start` after it gives a fresh adapter again."""
        fresh = await bench.state()
        await bench.trainer.stop()
        await bench.trainer.stop()
        await bench.reset()
        promised(await bench.state() == fresh, "start after stop gives the same fresh adapter")
