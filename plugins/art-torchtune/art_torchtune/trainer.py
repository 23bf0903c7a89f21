"""The torchtune trainer: torchtune's decoder with the adapter modules and the learner of art-torch."""

from __future__ import annotations

import itertools
from functools import partial
from typing import cast

import torch
from art_torch.base_model import load_base, locate, read_config
from art_torch.train.adapter import Adapter, layer_sites, shortest_names, target_modules, written_config
from art_torch.train.low_rank import Adapted, LowRankLinear
from art_torch.train.pass_model import Trainable
from art_torch.train.plain_sample import plain_logprobs, require_same
from art_torch.train.trainer import LearnerTrainer
from art_torch.trainer import use_gpu
from torch import nn
from transformers import PreTrainedModel

from art_core.config import LoRAConfig
from art_core.protocols.trainer import TrainerSpec
from art_torchtune.architecture import require_supported
from art_torchtune.conversion import row_order, tune_module
from art_torchtune.decoder import TunePassModel
from art_torchtune.options import TorchtuneTrainerOptions

_DISTRIBUTIONS = ("art-torchtune", "art-torch", "torchtune", "torch", "transformers", "peft")


class TorchtuneTrainer(LearnerTrainer):
    """Trains a LoRA adapter on torchtune's models; see `art_core.protocols.trainer` for what each call promises."""

    def __init__(self, options: TorchtuneTrainerOptions) -> None:
        super().__init__("torchtune", partial(build, options), _DISTRIBUTIONS)


def build(options: TorchtuneTrainerOptions, spec: TrainerSpec) -> Trainable:
    """Load a base model into torchtune's decoder and put an adapter into it.

    Args:
        options: The trainer's.
        spec: Base model and adapter shape.

    Raises:
        ConfigError: The base model, a LoRA target or a device is not there, or torchtune has no such decoder.
    """
    if options.cpu_threads is not None:
        torch.set_num_threads(options.cpu_threads)
    use_gpu("torchtune", spec.device_ids)
    require_supported(spec.base_model, read_config(spec.base_model, locate(spec.base_model)))
    base = load_base(spec.base_model, options.device, options.dtype, spec.chat_template)
    model = TunePassModel(base.model)
    require_same(model, base.model, plain_logprobs(base.model))
    frozen = tuple(itertools.chain(model.decoder.parameters(), model.decoder.buffers()))
    adapter = adapt(model.decoder, base.model, spec.lora, spec.base_model)
    if options.gradient_checkpointing:
        model.checkpoint_layers()
    return Trainable(base.info, model, adapter, frozen, base.tokenizer)


def adapt(decoder: nn.Module, model: PreTrainedModel, lora: LoRAConfig, base_model: str) -> Adapter:
    """Put an adapter into a decoder, in place.

    Its weights have Hugging Face's names and order of rows, so files, optimizer state and reference adapters are those
    of any other trainer, and nothing is converted on the way.

    Args:
        decoder: Torchtune's.
        model: The transformers model that the decoder was made of.
        lora: Shape, targets and seed.
        base_model: The base's name, for adapter_config.json.

    Raises:
        ConfigError: A target matches no linear module of the decoder layers.
    """
    names = target_modules(model, lora)
    modules: dict[str, Adapted] = {}
    for name in names:
        linear = cast(nn.Linear, decoder.get_submodule(tune_module(name)))
        module = LowRankLinear(linear, lora.rank, lora.alpha / lora.rank, row_order(name, model.config))
        decoder.set_submodule(tune_module(name), module)
        modules[name] = module
    config = written_config(lora, base_model, shortest_names(model, names))
    return Adapter(modules, layer_sites(model), config, lora.random_state)
