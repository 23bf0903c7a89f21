"""The LoRA adapter: put into the model, initialised, read and written in PEFT's layout."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from art_core.adapter_file import PREFIX, Site, read_bytes
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, ConfigError, nearest
from art_torch.frozen_linear import layer_linears
from art_torch.tensor_file import read_tensors
from art_torch.train.low_rank import Adapted, LowRank, LowRankLinear

_CONFIG_LIMIT_BYTES = 1 << 20
_SCALE_KEYS: Mapping[str, object] = {
    "r": None,
    "lora_alpha": None,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "fan_in_fan_out": False,
}
"""Keys of adapter_config.json that change what the tensors compute, and what a missing one means to PEFT."""


class Adapter:
    """Trainable low-rank updates of the model's linear modules, whichever library computes them.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), section 4.1: W + (alpha / rank)·B·A.
    """

    def __init__(
        self, modules: Mapping[str, Adapted], sites: Mapping[str, Site], config: Mapping[str, Any], seed: int
    ) -> None:
        """Take over adapted modules; they are made equal to the base.

        Args:
            modules: By their name in Hugging Face's layout of the model.
            sites: Every linear module of the decoder layers, adapted or not.
            config: What adapter_config.json says; see `written_config`.
            seed: For the first A.
        """
        self.sites = sites
        self._config = config
        self._seed = seed
        self._modules = {name: modules[name] for name in sorted(modules)}
        self.parameters: dict[str, nn.Parameter] = {}
        """The trainable weights, float32, by their name in the file; sorted."""
        for name, module in self._modules.items():
            self.parameters[f"{PREFIX}{name}.lora_A.weight"] = module.a
            self.parameters[f"{PREFIX}{name}.lora_B.weight"] = module.b
        self.reset()

    def reset(self) -> None:
        """A from the seed, B zero: the model computes what its base does. The same on every device."""
        generator = torch.Generator().manual_seed(self._seed)
        for name, parameter in self.parameters.items():
            value = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(value)

    def read(self, directory: Path) -> dict[str, Tensor]:
        """Read and check what `files` gave; the adapter is not changed.

        Raises:
            CheckpointCorruptError: The files are damaged or have another shape.
        """
        path = directory / ADAPTER_CONFIG
        try:
            seen: object = json.loads(read_bytes(path, _CONFIG_LIMIT_BYTES))
        except (ValueError, RecursionError) as error:
            raise CheckpointCorruptError(f"{path.name} in {directory} is not JSON: {error}", stage="train") from error
        if not isinstance(seen, dict):
            raise CheckpointCorruptError(f"{path.name} in {directory} is not a JSON object", stage="train")
        for key, absent in _SCALE_KEYS.items():
            if (value := seen.get(key, absent)) != self._config[key]:
                raise CheckpointCorruptError(
                    f"{path.name}: {key} is {value!r}; this trainer was started with {self._config[key]!r}",
                    stage="train",
                )
        return read_tensors(directory / ADAPTER, self.parameters)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `read` gave."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[name])

    @property
    def devices(self) -> dict[str, torch.device]:
        """Where each adapted module is."""
        return {name: module.a.device for name, module in self._modules.items()}

    @contextmanager
    def replaced(self, updates: Mapping[str, LowRank]) -> Iterator[None]:
        """Inside, the model computes with other updates, and with its base alone where there is none.

        Args:
            updates: Module name to update; empty: the base model.
        """
        for name, module in self._modules.items():
            module.compute(updates.get(name))
        try:
            yield
        finally:
            for module in self._modules.values():
                module.compute_own()

    def files(self) -> dict[str, bytes]:
        """adapter_config.json and adapter_model.safetensors; the same weights give the same bytes."""
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.parameters.items()}
        config = json.dumps(self._config, indent=2, sort_keys=True)
        return {ADAPTER_CONFIG: config.encode() + b"\n", ADAPTER: save(tensors, {"format": "pt"})}


def adapt(model: PreTrainedModel, lora: LoRAConfig, base_model: str) -> Adapter:
    """Put an adapter into a frozen model, in place, equal to the base.

    Args:
        model: Frozen; its linear modules are replaced by adapted ones.
        lora: Shape, targets and seed.
        base_model: The base's name, for adapter_config.json.

    Raises:
        ConfigError: A target matches no linear module of the decoder layers.
    """
    sites = layer_sites(model)
    names = target_modules(model, lora)
    config = written_config(lora, base_model, shortest_names(model, names))
    modules: dict[str, Adapted] = {}
    for name in names:
        module = LowRankLinear(cast(nn.Linear, model.get_submodule(name)), lora.rank, lora.alpha / lora.rank)
        model.set_submodule(name, module)
        modules[name] = module
    return Adapter(modules, sites, config, lora.random_state)


def written_config(lora: LoRAConfig, base_model: str, targets: Collection[str]) -> dict[str, Any]:
    """What adapter_config.json says.

    Args:
        lora: The adapter's shape.
        base_model: The base's name.
        targets: The adapted modules, by names that PEFT understands.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only ever divides it
        target_modules=list(targets),
        base_model_name_or_path=base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    settings: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def layer_sites(model: PreTrainedModel) -> dict[str, Site]:
    """Every linear module of the decoder layers of a model without adapter, by name."""
    return {name: Site(linear.in_features, linear.out_features) for name, linear in layer_linears(model).items()}


def target_modules(model: PreTrainedModel, lora: LoRAConfig) -> list[str]:
    """Full names of the modules to adapt: linear modules of the decoder layers, never the head or the embeddings.

    Args:
        model: The base model.
        lora: A target is a module's full name or the end of it, e.g. ``"q_proj"``; None: all of them.

    Raises:
        ConfigError: A target matches none; names it and those that exist.
    """
    linear = sorted(layer_linears(model))
    if not linear:
        raise ConfigError(f"{type(model).__name__} has no torch.nn.Linear in its decoder layers; LoRA needs one")
    if lora.target_modules is None:
        return linear
    chosen: set[str] = set()
    for target in lora.target_modules:
        matches = {name for name in linear if _matches(name, target)}
        if not matches:
            known = nearest(target, {name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"LoRA target {target!r} matches no linear module in the decoder layers of "
                f"{type(model).__name__}; {known}"
            )
        chosen |= matches
    return sorted(chosen)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def shortest_names(model: PreTrainedModel, modules: list[str]) -> list[str]:
    """The last words of the modules' names where those mean exactly these modules, else their full names."""
    words = sorted({name.rpartition(".")[2] for name in modules})
    meant = [name for name, _ in model.named_modules() if any(_matches(name, word) for word in words)]
    return words if sorted(meant) == sorted(modules) else modules
