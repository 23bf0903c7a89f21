"""``TrainableModel(_internal_config=...)``: keys that programs already write, and their checks.

The nested dicts are typed in `art_core.client.option` and checked by the part that reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypedDict

from art_core.client.config import LocalTrainArgs, LoRAConfig, TrainSFTConfig
from art_core.client.option import (
    EngineArgs,
    InitArgs,
    OpenAIServerConfig,
    ServerArgs,
    TrainerArgs,
    VllmRuntimeArgs,
)
from art_core.client.spelling import PEFT_ARGS
from art_core.errors import CapabilityError, ConfigError, nearest

__all__ = [
    "EngineArgs",
    "InitArgs",
    "InternalModelConfig",
    "LoRAConfig",
    "OpenAIServerConfig",
    "PeftArgs",
    "RolloutWeightUpdateMode",
    "ServerArgs",
    "TrainConfig",
    "TrainSFTConfig",
    "TrainerArgs",
    "VllmRuntimeArgs",
    "is_dedicated_mode",
    "is_external_vllm_mode",
    "validate_dedicated_config",
    "validate_internal_config",
]


RolloutWeightUpdateMode = Literal["step_lora", "in_flight_lora"]

TrainConfig = LocalTrainArgs
"""Further options of the older `TrainableModel.train`: any keyword of `backend.train`."""


class InternalModelConfig(TypedDict, total=False):
    """Everything `_internal_config` may hold."""

    init_args: InitArgs
    engine_args: EngineArgs
    trainer_args: TrainerArgs
    trainer_gpu_ids: list[int]
    """GPUs to train on; with `inference_gpu_ids`, inference never pauses."""
    inference_gpu_ids: list[int]
    """GPUs to serve from."""
    rollout_weight_update_mode: RolloutWeightUpdateMode
    chat_template: str
    """Jinja template in place of the model's own."""
    chat_template_path: str
    """A file that holds it."""
    chat_template_kwargs: dict[str, object]
    """Further variables of the template, as JSON; a request's own ``chat_template_kwargs`` win."""
    chat_template_content_format: str
    chat_template_tool_schema_format: Literal["default", "vllm_openai"]
    """Accepted and not used: it says how a trainer renders tools again, and none of ours renders what was sampled."""
    vllm_runtime: VllmRuntimeArgs
    tinker_args: dict[str, Any] | None
    tinker_native_args: dict[str, Any] | None
    allow_unvalidated_arch: bool
    megatron_model_initialization: Literal["pretrained", "random"]


_NOT_YET: dict[str, object] = {
    "rollout_weight_update_mode": "step_lora",
    "chat_template_content_format": "auto",
    "tinker_args": None,
    "tinker_native_args": None,
    "megatron_model_initialization": "pretrained",
}
"""Key that has no effect yet, to the only value it may have."""


def PeftArgs(*_: object, **__: object) -> NoReturn:
    """Removed.

    Raises:
        ConfigError: Always; says what to write instead.
    """
    raise ConfigError(PEFT_ARGS)


def is_external_vllm_mode(config: InternalModelConfig) -> bool:
    """Whether the engine is one that somebody else started.

    Raises:
        ConfigError: The mode is neither "managed" nor "external".
    """
    runtime: object = config.get("vllm_runtime", {})
    if not isinstance(runtime, Mapping):
        raise ConfigError("vllm_runtime must be a mapping")
    mode: object = runtime.get("mode", "managed")
    if mode not in ("managed", "external"):
        raise ConfigError("vllm_runtime.mode must be either 'managed' or 'external'")
    return mode == "external"


def is_dedicated_mode(config: InternalModelConfig) -> bool:
    """Whether training and inference run on separate GPUs."""
    return is_external_vllm_mode(config) or ("trainer_gpu_ids" in config and "inference_gpu_ids" in config)


def validate_dedicated_config(config: InternalModelConfig) -> None:
    """Check what the configuration says about GPUs.

    Raises:
        ConfigError: The GPU lists, or what depends on them, don't fit together.
    """
    engine_args = config.get("engine_args", {})
    if config.get("rollout_weight_update_mode", "step_lora") not in ("step_lora", "in_flight_lora"):
        raise ConfigError("rollout_weight_update_mode must be either 'step_lora' or 'in_flight_lora'")
    if is_external_vllm_mode(config):
        if not config["vllm_runtime"].get("server_url"):
            raise ConfigError("vllm_runtime.server_url is required for external mode")
        if not config.get("trainer_gpu_ids", [0]):
            raise ConfigError("trainer_gpu_ids must be non-empty")
        return
    if ("trainer_gpu_ids" in config) != ("inference_gpu_ids" in config):
        raise ConfigError("trainer_gpu_ids and inference_gpu_ids must both be set or both unset")
    if "trainer_gpu_ids" in config:
        _validate_gpu_ids(config["trainer_gpu_ids"], config["inference_gpu_ids"], engine_args)
    elif not engine_args.get("enable_sleep_mode", True):
        raise ConfigError("Shared-GPU mode requires engine_args.enable_sleep_mode=True for the external vLLM runtime")


def _validate_gpu_ids(trainer: list[int], inference: list[int], engine_args: EngineArgs) -> None:
    if not trainer:
        raise ConfigError("trainer_gpu_ids must be non-empty")
    if not inference:
        raise ConfigError("inference_gpu_ids must be non-empty")
    if set(trainer) & set(inference):
        raise ConfigError("trainer_gpu_ids and inference_gpu_ids must not overlap")
    if len(inference) > 1 and engine_args.get("tensor_parallel_size", 1) != len(inference):
        raise ConfigError(
            "Multi-GPU inference requires engine_args.tensor_parallel_size to match len(inference_gpu_ids)"
        )
    if engine_args.get("enable_sleep_mode"):
        raise ConfigError(
            "enable_sleep_mode is incompatible with dedicated mode "
            "(shared-GPU mode uses runtime sleep/wake; dedicated mode does not)"
        )


def chat_template(config: InternalModelConfig) -> str | None:
    """The Jinja template that replaces the model's own, given as text or as a file; None: the model's own.

    Raises:
        ConfigError: Both are given, or the file can't be read.
    """
    path = config.get("chat_template_path")
    if path is None:
        return config.get("chat_template")
    if config.get("chat_template") is not None:
        raise ConfigError("_internal_config has 'chat_template' and 'chat_template_path'; give one of them")
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"_internal_config['chat_template_path'] is {path!r}, which can't be read: {error}"
        ) from error


def _check_chat_template_kwargs(given: object) -> None:
    """Refuse what JSON can't carry to the engine."""
    try:
        carried = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"_internal_config['chat_template_kwargs'] is no JSON: {error}") from error
    if not isinstance(given, dict) or carried != given:
        raise ConfigError(
            f"_internal_config['chat_template_kwargs'] is {given!r}; allowed: a dict of names to what JSON can carry"
        )


def merged_config(config: InternalModelConfig | None, server_config: OpenAIServerConfig | None) -> InternalModelConfig:
    """A model's configuration with what ``model.register(_openai_client_config=...)`` adds.

    Args:
        config: The model's ``_internal_config``.
        server_config: Its ``engine_args`` win.
    """
    merged = InternalModelConfig(**(config or {}))
    if engine_args := (server_config or {}).get("engine_args"):
        merged["engine_args"] = {**merged.get("engine_args", {}), **engine_args}
    return merged


def validate_internal_config(config: Mapping[str, Any]) -> None:
    """Check the whole configuration; everything that can be refused is refused before anything starts.

    Args:
        config: An `InternalModelConfig`, as given.

    Raises:
        ConfigError: A key is unknown (the nearest is named), or values don't fit together.
        CapabilityError: A key that is not implemented yet has another value than its default.
    """
    for key in config:
        if key not in InternalModelConfig.__annotations__:
            raise ConfigError(
                f"_internal_config has no key {key!r}; {nearest(key, InternalModelConfig.__annotations__)}"
            )
    known = InternalModelConfig(**config)  # type: ignore[typeddict-item]
    validate_dedicated_config(known)
    chat_template(known)
    _check_chat_template_kwargs(config.get("chat_template_kwargs", {}))
    if config.get("chat_template_tool_schema_format", "default") not in ("default", "vllm_openai"):
        seen = config["chat_template_tool_schema_format"]
        raise ConfigError(f"chat_template_tool_schema_format is {seen!r}; allowed: 'default', 'vllm_openai'")
    for key, default in _NOT_YET.items():
        if config.get(key, default) != default:
            raise CapabilityError(f"_internal_config[{key!r}] is not implemented yet; leave it out")
