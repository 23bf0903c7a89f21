"""Option names that programs write for engines, trainers and servers.

They are typed for editors and checked by the part that reads them: an engine takes the keys of `EngineArgs` and
`InitArgs` that it has an option for and leaves the others; a trainer takes those of `TrainerArgs`.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


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
    """How the trainer works; those up to `logprob_chunk_tokens` are defaults of every step: `StepConfig`'s fields."""

    learning_rate: float
    loss_fn: Literal["cispo", "ppo"]
    epsilon: float | None
    epsilon_high: float | None
    importance_sampling_level: Literal["token", "sequence", "average", "geometric_average"]
    max_negative_advantage_importance_sampling_weight: float | None
    mask_prob_ratio: bool
    kimi_k2_tau: float | None
    precalculate_logprobs: bool
    truncated_importance_sampling: float | None
    allow_training_without_logprobs: bool
    scale_rewards: bool
    advantage_balance: float
    kl_penalty_coef: float
    kl_penalty_source: Literal["current_learner", "sample"]
    kl_penalty_reference_step: int | None
    kl_ref_adapter_path: str | None
    update_sequences: int | None
    update_learning_rates: tuple[float, ...] | None
    """One for each of a step's updates; for steps of a fixed number of them."""
    num_trajectories_learning_rate_multiplier_power: float
    scale_learning_rate_by_reward_std_dev: bool
    max_grad_norm: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    microbatch_tokens: int
    logprob_chunk_tokens: int
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
    score: bool
    worker_extension: bool


class ServerArgs(TypedDict, total=False):
    """How the inference server is started; accepted and not used, because clients speak to the gateway."""

    host: str | None
    port: int
    api_key: str | None
    log_level: str
    tool_call_parser: str
    enable_auto_tool_choice: bool
    chat_template: str | None
    return_tokens_as_token_ids: bool


class OpenAIServerConfig(TypedDict, total=False):
    """What ``model.register(_openai_client_config=...)`` may hold."""

    server_args: ServerArgs
    """Accepted and not used."""
    engine_args: EngineArgs
    """On top of ``_internal_config["engine_args"]``."""
    log_file: str
    """Accepted and not used: the engine's log stands in the run's ``logs/``."""
