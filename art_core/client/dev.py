"""``TrainableModel(_internal_config=...)``: keys that programs already write, and their checks.

The nested dicts are typed for editors and checked by the part that reads them: an engine takes the keys of
`EngineArgs` and `InitArgs` that it has an option for and leaves the others; a trainer takes those of `TrainerArgs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypedDict

from art_core.client.config import LoRAConfig
from art_core.errors import CapabilityError, ConfigError, nearest

__all__ = [
    "EngineArgs",
    "InitArgs",
    "InternalModelConfig",
    "LoRAConfig",
    "PeftArgs",
    "TrainerArgs",
    "VllmRuntimeArgs",
    "is_dedicated_mode",
    "is_external_vllm_mode",
    "validate_dedicated_config",
    "validate_internal_config",
]


class InitArgs(TypedDict, total=False):
    """How the base model is loaded."""

    model_name: str
    max_seq_length: int
    dtype: str | None
    load_in_4bit: bool
    load_in_8bit: bool
    load_in_16bit: bool
    full_finetuning: bool
    token: str | None
    device_map: str
    rope_scaling: dict[str, Any] | None
    fix_tokenizer: bool
    trust_remote_code: bool
    use_gradient_checkpointing: str
    resize_model_vocab: int | None
    revision: str | None
    use_exact_model_name: bool
    gpu_memory_utilization: float
    float8_kv_cache: bool
    random_state: int
    max_lora_rank: int
    disable_log_stats: bool
    enable_prefix_caching: bool
    use_async: bool


class EngineArgs(TypedDict, total=False):
    """How the inference engine is started."""

    model: str
    served_model_name: str | list[str] | None
    tokenizer: str | None
    tokenizer_mode: str
    tokenizer_revision: str | None
    trust_remote_code: bool
    allowed_local_media_path: str
    download_dir: str | None
    load_format: str
    dtype: str
    kv_cache_dtype: str
    seed: int
    max_model_len: int | None
    pipeline_parallel_size: int
    tensor_parallel_size: int
    block_size: int | None
    enable_prefix_caching: bool | None
    disable_sliding_window: bool
    swap_space: float
    cpu_offload_gb: float
    gpu_memory_utilization: float
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    max_logprobs: int
    disable_log_stats: bool
    revision: str | None
    code_revision: str | None
    rope_scaling: dict[str, Any] | None
    rope_theta: float | None
    quantization: str | None
    enforce_eager: bool | None
    disable_custom_all_reduce: bool
    limit_mm_per_prompt: dict[str, int] | None
    mm_processor_kwargs: dict[str, Any] | None
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    fully_sharded_loras: bool
    lora_dtype: str | None
    max_cpu_loras: int | None
    device: str
    num_gpu_blocks_override: int | None
    model_loader_extra_config: dict[str, Any] | None
    enable_chunked_prefill: bool | None
    guided_decoding_backend: str
    scheduling_policy: Literal["fcfs", "priority"]
    generation_config: str | None
    override_generation_config: dict[str, Any] | None
    enable_sleep_mode: bool
    model_impl: str
    additional_config: dict[str, Any] | None
    tool_call_parser: str
    reasoning_parser: str
    enable_auto_tool_choice: bool
    enable_expert_parallel: bool
    enable_log_requests: bool


class TrainerArgs(TypedDict, total=False):
    """How the trainer works; the first seven are defaults of every step."""

    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    microbatch_tokens: int
    lr_scheduler_type: str
    warmup_ratio: float
    warmup_steps: int
    optim: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    num_generations: int | None
    max_steps: int
    logging_steps: float
    seed: int
    bf16: bool
    fp16: bool
    torch_compile: bool
    max_prompt_length: int | None
    max_completion_length: int | None
    temperature: float
    beta: float


class VllmRuntimeArgs(TypedDict, total=False):
    """Where the inference engine runs."""

    mode: Literal["managed", "external"]
    server_url: str
    api_key: str | None
    local_checkpoint_root: str | None
    server_checkpoint_root: str | None
    health_timeout_s: float


class InternalModelConfig(TypedDict, total=False):
    """Everything `_internal_config` may hold."""

    init_args: InitArgs
    engine_args: EngineArgs
    trainer_args: TrainerArgs
    trainer_gpu_ids: list[int]
    """GPUs to train on; with `inference_gpu_ids`, inference never pauses."""
    inference_gpu_ids: list[int]
    """GPUs to serve from."""
    rollout_weight_update_mode: Literal["step_lora", "in_flight_lora"]
    chat_template: str
    """Jinja template in place of the model's own."""
    chat_template_path: str
    chat_template_kwargs: dict[str, object]
    chat_template_content_format: str
    chat_template_tool_schema_format: str
    vllm_runtime: VllmRuntimeArgs
    tinker_args: dict[str, Any] | None
    tinker_native_args: dict[str, Any] | None
    allow_unvalidated_arch: bool
    megatron_model_initialization: Literal["pretrained", "random"]


_PEFT_ARGS = (
    "`peft_args` has been replaced by top-level `TrainableModel(lora_config=...)`; rename its keys: r -> rank, "
    "lora_alpha -> alpha, lora_dropout -> dropout, init_lora_weights -> init_weights; the others keep their names"
)
_REMOVED = {
    "peft_args": _PEFT_ARGS,
    "rollout_weights_mode": "rollout_weights_mode has been removed; ART always serves native LoRA adapters",
}
_NOT_YET: dict[str, object] = {
    "rollout_weight_update_mode": "step_lora",
    "chat_template_path": None,
    "chat_template_content_format": "auto",
    "chat_template_tool_schema_format": "default",
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
    raise ConfigError(_PEFT_ARGS)


def is_external_vllm_mode(config: InternalModelConfig) -> bool:
    """Whether the engine is one that somebody else started.

    Raises:
        ConfigError: The mode is neither "managed" nor "external".
    """
    mode = config.get("vllm_runtime", {}).get("mode", "managed")
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


def validate_internal_config(config: Mapping[str, Any]) -> None:
    """Check the whole configuration; everything that can be refused is refused before anything starts.

    Args:
        config: An `InternalModelConfig`, as given.

    Raises:
        ConfigError: A key is unknown (the nearest is named), was removed (what to write instead is named), or values
            don't fit together.
        CapabilityError: A key that is not implemented yet has another value than its default.
    """
    for key in config:
        if key in _REMOVED:
            raise ConfigError(_REMOVED[key])
        if key not in InternalModelConfig.__annotations__:
            raise ConfigError(
                f"_internal_config has no key {key!r}; {nearest(key, InternalModelConfig.__annotations__)}"
            )
    if "fast_inference" in config.get("init_args", {}):
        raise ConfigError("init_args.fast_inference has been removed; the engine always runs as its own process")
    validate_dedicated_config(InternalModelConfig(**config))  # type: ignore[typeddict-item]
    for key, default in _NOT_YET.items():
        if config.get(key, default) != default:
            raise CapabilityError(f"_internal_config[{key!r}] is not implemented yet; leave it out")
    if config.get("vllm_runtime", {}).get("mode") == "external":
        raise CapabilityError("vllm_runtime.mode='external' is not implemented yet; leave vllm_runtime out")
