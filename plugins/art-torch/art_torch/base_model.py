"""Load the frozen base model and its tokenizer; the engine and the trainer both start here.

Weights that need no cast stay memory-mapped from the safetensors files, so that an engine and a trainer on one
machine share one copy in the page cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from art_core.base_model import BaseIdentity, ModelInfo, base_digest, local_directory
from art_core.errors import ConfigError
from art_torch.options import Device, DType

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class LoadedBase:
    """A frozen causal language model, ready for inference or as the base of an adapter."""

    model: PreTrainedModel
    """In eval mode; no parameter requires a gradient."""
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    device: torch.device
    dtype: torch.dtype


def load_base(
    base_model: str, device: Device = "auto", dtype: DType = "auto", chat_template: str | None = None
) -> LoadedBase:
    """Load a causal language model from a local directory or the Hugging Face hub.

    Args:
        base_model: Local directory in Hugging Face layout, or hub name.
        device: ``auto``: CUDA, else MPS, else CPU.
        dtype: ``auto``: bfloat16 on CUDA, float32 elsewhere.
        chat_template: Jinja template that replaces the model's own.

    Raises:
        ConfigError: The model can't be found, is no causal language model, has no safetensors weights, or the
            device is absent.
    """
    target = resolve_device(device)
    kind = resolve_dtype(dtype, target)
    directory = locate(base_model)
    model = _load_model(base_model, directory, kind)
    model.to(target)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(base_model, directory, chat_template)
    return LoadedBase(model, tokenizer, describe(base_model, directory, model, tokenizer), target, kind)


def load_skeleton(base_model: str, directory: Path) -> PreTrainedModel:
    """The model on the meta device, without its weights: for what must be known before another library loads it.

    Args:
        base_model: Its name, for the message.
        directory: Where it is.

    Raises:
        ConfigError: It is no causal language model, or its safetensors files are not whole.
    """
    return _load_model(base_model, directory, torch.float32, "meta")


def describe(base_model: str, directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """What a part holds that has loaded a base model.

    Args:
        base_model: Its name.
        directory: Where it was loaded from.
        model: The loaded model.
        tokenizer: With the chat template that the run uses.
    """
    return ModelInfo(
        identity=BaseIdentity(name=base_model, digest=base_digest(directory)),
        vocab_size=model.config.get_text_config().vocab_size,
        context_tokens=_context_tokens(base_model, model),
        chat_template=_chat_template(tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def load_tokenizer(base_model: str, directory: Path, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Args:
        base_model: The model's name, for the message.
        directory: Where it is.
        chat_template: Jinja template that replaces the model's own.

    Raises:
        ConfigError: There is none that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"base model {base_model!r} has no usable tokenizer: {_first_line(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return cast(PreTrainedTokenizerBase, tokenizer)


def resolve_device(device: Device) -> torch.device:
    """The device that an option names.

    Raises:
        ConfigError: This machine does not have it.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in present.items() if here))
    if not present[device]:
        here = ", ".join(name for name, here in present.items() if here)
        raise ConfigError(f"device {device!r} is not present on this machine; present: {here}")
    return torch.device(device)


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """The compute type that an option names, on that device."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def locate(base_model: str) -> Path:
    """The local directory of a model, downloaded first where it is a hub name.

    Raises:
        ConfigError: It is neither a local directory nor a reachable hub name.
    """
    path = local_directory(base_model)
    if path is not None:
        return path
    try:
        return Path(snapshot_download(base_model, allow_patterns=_HUB_FILES, ignore_patterns=["original/*"]))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise ConfigError(
            f"base model {base_model!r} is neither a local directory nor a hub name that can be reached; give a "
            f"local directory in Hugging Face layout, or a hub name that is cached or online ({_first_line(error)})"
        ) from error


def read_config(base_model: str, directory: Path) -> PretrainedConfig:
    """A model's config, without its weights.

    Args:
        base_model: Its name, for messages.
        directory: Where it is.

    Raises:
        ConfigError: There is none, or transformers does not know such a model.
    """
    if not (directory / "config.json").is_file():
        raise ConfigError(f"base model {base_model!r} has no config.json; give a directory in Hugging Face layout")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _not_loaded(base_model, error) from error
    return config


def _load_model(base_model: str, directory: Path, dtype: torch.dtype, device_map: str | None = None) -> PreTrainedModel:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loader: Any = AutoModelForCausalLM  # its annotation does not know of output_loading_info
    config = read_config(base_model, directory)
    try:
        model, loading = loader.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(base_model, error) from error
    _require_causal(base_model, model, loading)
    model.eval().requires_grad_(False)
    return cast(PreTrainedModel, model)


def _require_causal(base_model: str, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    stored = model.config.architectures
    if stored is not None and type(model).__name__ not in stored:
        raise ConfigError(
            f"base model {base_model!r} is {stored[0]!r}, not a causal LM; allowed here: {type(model).__name__!r}"
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ConfigError(
            f"base model {base_model!r} lacks {len(missing)} weights, the first is {missing[0]!r}; "
            "give a directory whose safetensors files are whole"
        )


def _context_tokens(base_model: str, model: PreTrainedModel) -> int:
    try:
        return int(model.config.get_text_config().max_position_embeddings)
    except AttributeError as error:
        raise ConfigError(
            f"base model {base_model!r} is a {type(model).__name__}, whose config has no max_position_embeddings; "
            "choose a transformer with attention in every layer"
        ) from error


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The one that chats without tools are rendered by: some tokenizers have several, by name."""
    template: str | dict[str, str] | None = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _not_loaded(base_model: str, error: Exception) -> ConfigError:
    return ConfigError(f"base model {base_model!r} can't be loaded as a causal LM: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
