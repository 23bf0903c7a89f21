"""The torch trainer: a transformers model with our own adapter modules, trained in packed passes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch

from art_core.errors import ConfigError
from art_core.protocols.trainer import TrainerSpec
from art_torch.base_model import load_base
from art_torch.options import TorchTrainerOptions
from art_torch.train.adapter import adapt
from art_torch.train.packed_model import PackedModel
from art_torch.train.pass_model import Trainable
from art_torch.train.recomputation import checkpoint_layers
from art_torch.train.trainer import LearnerTrainer

_DISTRIBUTIONS = ("art-torch", "torch", "transformers", "peft")


class TorchTrainer(LearnerTrainer):
    """Trains a LoRA adapter with PyTorch; see `art_core.protocols.trainer` for what each call promises."""

    def __init__(self, options: TorchTrainerOptions) -> None:
        super().__init__("torch", partial(build, options), _DISTRIBUTIONS)


def build(options: TorchTrainerOptions, spec: TrainerSpec) -> Trainable:
    """Load a base model and put an adapter into it.

    Args:
        options: The trainer's.
        spec: Base model and adapter shape.

    Raises:
        ConfigError: The base model, a LoRA target or a device is not there, or the architecture can't be trained in
            packed passes.
    """
    if options.cpu_threads is not None:
        torch.set_num_threads(options.cpu_threads)
    use_gpu("torch", spec.device_ids)
    base = load_base(spec.base_model, options.device, options.dtype, spec.chat_template)
    frozen = tuple(itertools.chain(base.model.parameters(), base.model.buffers()))
    model = PackedModel(base.model)
    if options.gradient_checkpointing:
        checkpoint_layers(base.model)
    return Trainable(base.info, model, adapt(base.model, spec.lora, spec.base_model), frozen, base.tokenizer)


def use_gpu(part: str, device_ids: Sequence[int] | None) -> None:
    """Make the GPU that a spec names the current one; nothing where it names none.

    Args:
        part: The trainer's name, for the message.
        device_ids: What `TrainerSpec.device_ids` says.

    Raises:
        ConfigError: It is not one GPU, or torch sees none.
    """
    if device_ids is None:
        return
    if len(device_ids) != 1 or device_ids[0] not in range(torch.cuda.device_count()):
        raise ConfigError(
            f"trainer_gpu_ids are {list(device_ids)}; trainer {part!r} uses one GPU, "
            f"and torch sees {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(device_ids[0])
