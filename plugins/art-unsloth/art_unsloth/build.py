"""A base model loaded by Unsloth, with an adapter by Unsloth in it, as a learner takes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from art_torch.base_model import describe, load_skeleton, load_tokenizer, locate
from art_torch.train.adapter import Adapter, layer_sites, shortest_names, target_modules, written_config
from art_torch.train.packed_model import PackedModel
from art_torch.train.pass_model import Trainable
from art_torch.train.recomputation import checkpoint_layers
from art_torch.train.row_model import RowModel
from art_torch.trainer import use_gpu
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from art_core.adapter_file import Site
from art_core.base_model import ModelInfo
from art_core.errors import ConfigError, TrainerStartError
from art_core.protocols.trainer import TrainerSpec
from art_unsloth.library import Unsloth
from art_unsloth.options import UnslothTrainerOptions, require_supported
from art_unsloth.peft_module import PeftModule, quantised_tensors


def build(unsloth: Unsloth, options: UnslothTrainerOptions, spec: TrainerSpec) -> Trainable:
    """Load a base model and put an adapter into it.

    Args:
        unsloth: The imported library.
        options: The trainer's.
        spec: Base model and adapter shape.

    Raises:
        ConfigError: An option does not go with the device, or the base model or a LoRA target is not there.
        TrainerStartError: Unsloth made something else than it was asked for.
    """
    require_supported(unsloth.device, options)
    if unsloth.device == "cuda" and options.dtype != "float32" and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU has no bfloat16, and without it 16-bit training is refused; set dtype='float32'")
    if options.cpu_threads is not None:
        torch.set_num_threads(options.cpu_threads)
    use_gpu("unsloth", spec.device_ids)
    plan = _Plan.of(unsloth.device, options, spec)
    model = _load(unsloth, options, spec, plan)
    adapted = {name: PeftModule(name, model.get_submodule(name)) for name in plan.names}
    _require_bits(options, sum(module.quantised for module in adapted.values()), len(adapted))
    trained = {id(parameter) for module in adapted.values() for parameter in (module.a, module.b)}
    tensors = (*model.parameters(), *model.buffers(), *quantised_tensors(model))
    return Trainable(
        info=plan.info,
        model=PackedModel(model) if _packs(unsloth.device, options) else RowModel(model),
        adapter=Adapter(
            adapted, plan.sites, written_config(spec.lora, spec.base_model, plan.words), spec.lora.random_state
        ),
        frozen=tuple(tensor for tensor in tensors if id(tensor) not in trained),
        tokenizer=plan.tokenizer,
    )


@dataclass(frozen=True)
class _Plan:
    """What is known before Unsloth loads anything."""

    directory: Path
    info: ModelInfo
    names: list[str]
    """Modules to adapt, in full."""
    words: list[str]
    """The same, as short as PEFT and Unsloth like them."""
    sites: Mapping[str, Site]
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, device: str, options: UnslothTrainerOptions, spec: TrainerSpec) -> _Plan:
        directory = locate(spec.base_model)
        skeleton = load_skeleton(spec.base_model, directory)
        names = target_modules(skeleton, spec.lora)
        tokenizer = load_tokenizer(spec.base_model, directory, spec.chat_template)
        info = describe(spec.base_model, directory, skeleton, tokenizer)
        name = options.dtype
        if name == "auto":
            name = "bfloat16" if device == "cuda" else "float32"
        context_tokens = min(info.context_tokens, options.max_seq_length or info.context_tokens)
        return cls(
            directory=directory,
            info=replace(info, context_tokens=context_tokens, dtype=name),
            names=names,
            words=shortest_names(skeleton, names),
            sites=layer_sites(skeleton),
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[name],
            tokenizer=tokenizer,
        )


def _packs(device: str, options: UnslothTrainerOptions) -> bool:
    return device == "cpu" if options.packing is None else options.packing


def _load(unsloth: Unsloth, options: UnslothTrainerOptions, spec: TrainerSpec, plan: _Plan) -> PreTrainedModel:
    """The base model, adapted and ready to train."""
    base, _ = unsloth.model.from_pretrained(
        model_name=str(plan.directory),
        max_seq_length=plan.info.context_tokens,
        dtype=plan.dtype,
        load_in_4bit=options.load_in_4bit,
        use_gradient_checkpointing=options.gradient_checkpointing,
        device_map={"": spec.device_ids[0]} if spec.device_ids else None,
        local_files_only=True,
    )
    wrapped = unsloth.model.get_peft_model(
        base,
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        target_modules=plan.words,
        use_gradient_checkpointing=options.gradient_checkpointing,
        random_state=spec.lora.random_state,
    )
    model: PreTrainedModel = wrapped.get_base_model()
    if unsloth.device == "cuda":
        unsloth.model.for_training(wrapped, use_gradient_checkpointing=bool(options.gradient_checkpointing))
    else:
        # The learner takes no dropout, and checkpointed layers alone need the training mode: see `checkpoint_layers`.
        model.eval()  # type: ignore[no-untyped-call]
        if options.gradient_checkpointing:
            checkpoint_layers(model)
    _require_as_planned(model, plan)
    return model


def _require_as_planned(model: PreTrainedModel, plan: _Plan) -> None:
    if model.dtype != plan.dtype:
        raise TrainerStartError(f"Unsloth loaded {model.dtype} where {plan.dtype} was asked for; set the option dtype")
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if trained != 2 * len(plan.names):
        raise TrainerStartError(
            f"Unsloth made {trained} weights trainable where {2 * len(plan.names)} were expected; choose other "
            "target_modules"
        )


def _require_bits(options: UnslothTrainerOptions, quantised: int, modules: int) -> None:
    """Where Unsloth finds no way to quantise, it loads 16 bits and prints a line."""
    if quantised != (modules if options.load_in_4bit else 0):
        raise TrainerStartError(
            f"load_in_4bit is {options.load_in_4bit} and Unsloth loaded {quantised} of {modules} adapted modules in 4 "
            f"bits; quantising needs bitsandbytes in {sys.executable}, working on this device; set "
            f"load_in_4bit={not options.load_in_4bit}, or choose another base model"
        )
