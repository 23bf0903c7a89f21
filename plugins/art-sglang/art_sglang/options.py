"""Options of the SGLang engine, and what they become in SGLang's own arguments. Light: imports no SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from art_core.config import HostedOptions
from art_core.device import driver_is_loaded
from art_core.errors import ConfigError
from art_core.protocols.engine import EngineSpec

CPU_TOTAL_TOKENS = 16384
"""Tokens of key-value cache on a CPU, where SGLang would take most of the machine's memory."""

_FIXED = (
    "api_key",
    "chat_template",
    "device",
    "dp_size",
    "enable_lora",
    "enable_lora_overlap_loading",
    "host",
    "incremental_streaming_output",
    "lora_paths",
    "lora_strict_loading",
    "lora_target_modules",
    "max_loaded_loras",
    "max_lora_rank",
    "max_loras_per_batch",
    "model_path",
    "nnodes",
    "port",
    "pp_size",
    "sampling_defaults",
    "served_model_name",
    "skip_tokenizer_init",
    "tokenizer_worker_num",
)
"""Arguments of SGLang that follow from the contract, or have an option of their own that must agree with it."""

_ALWAYS: Mapping[str, Any] = {
    "enable_lora": True,
    "log_level": "info",
    "lora_strict_loading": True,  # else keys that match nothing pass in silence
    "sampling_defaults": "openai",  # else the model's generation_config.json cuts the distribution in silence
    "served_model_name": "base",  # SGLang refuses a colon in it; no request that reaches SGLang names it
    "sleep_on_idle": True,  # else an idle scheduler takes a whole core
}
_EAGER = {"cuda_graph_backend_decode": "disabled", "cuda_graph_backend_prefill": "disabled"}
_CPU: Mapping[str, Any] = {
    **_EAGER,
    "attention_backend": "torch_native",
    "grammar_backend": "none",
    "lora_backend": "torch_native",
    "max_total_tokens": CPU_TOTAL_TOKENS,
    "sampling_backend": "pytorch",
}


class SglangOptions(HostedOptions):
    """How the SGLang engine runs. Names shared with other engines' arguments mean the same."""

    part: ClassVar[str] = "sglang"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where a driver shows a GPU, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: the model's own on CUDA, float32 on a CPU."""
    max_loras: int = Field(default=4, ge=2, le=64)
    """Adapters loaded at once; each has a slot on the device, and the base model one more."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest sequence, prompt and completion, in tokens; None: the model's own context."""
    max_num_seqs: int = Field(default=32, ge=1, le=4096)
    """Sequences generated at once; further ones wait."""
    max_total_tokens: int | None = Field(default=None, ge=64)
    """Tokens of key-value cache; None: what `gpu_memory_utilization` leaves, on a CPU 16384."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, lt=1)
    """Share of a GPU's memory for weights and key-value cache; None: SGLang's choice. SGLang's mem_fraction_static."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model."""
    enforce_eager: bool = False
    """Capture no CUDA graphs: slower, starts sooner."""
    enable_prefix_caching: bool = True
    """Keep the key-value cache of prompts; an adapter never sees another's."""
    reasoning_parser: str | None = None
    """One of SGLang's parsers of reasoning; None: reasoning stays in the text."""
    tool_call_parser: str | None = "auto"
    """One of SGLang's parsers of tool calls; auto: the one that the chat template speaks for. None, or a template that
    speaks for none: a request with tools is refused."""
    server_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of SGLang by their Python names, checked against the version that runs."""

    @field_validator("server_args")
    @classmethod
    def _free(cls, value: dict[str, Any]) -> dict[str, Any]:
        fixed = sorted(value.keys() & set(_FIXED))
        if fixed:
            raise ValueError(f"{', '.join(fixed)} can't be given: set by ART, or by an option of its own")
        return value


def resolve_device(options: SglangOptions) -> Literal["cpu", "cuda"]:
    """The device that the options name.

    Raises:
        ConfigError: There is no GPU.
    """
    present = driver_is_loaded()
    if options.device == "cuda" and not present:
        raise ConfigError("'sglang' option 'device' is 'cuda' and no CUDA driver shows a GPU here; allowed: auto, cpu")
    if options.device == "auto":
        return "cuda" if present else "cpu"
    return options.device


def visible_devices(options: SglangOptions, ids: tuple[int, ...] | None, present: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for SGLang's processes.

    Args:
        options: `tensor_parallel_size` is used.
        ids: The GPUs to use, as this process counts them; None: the first ones.
        present: How many GPUs this machine has.
        visible: CUDA_VISIBLE_DEVICES of this process.

    Raises:
        ConfigError: A GPU is not there, or their number does not fit.
    """
    names = [name.strip() for name in visible.split(",")] if visible is not None else [str(n) for n in range(present)]
    names = [name for name in names if name]
    wanted = range(options.tensor_parallel_size) if ids is None else ids
    if len(wanted) != options.tensor_parallel_size:
        raise ConfigError(
            f"inference_gpu_ids are {list(wanted)} and tensor_parallel_size is {options.tensor_parallel_size}; "
            "they must name as many GPUs as share the model"
        )
    absent = [number for number in wanted if number not in range(len(names))]
    if absent:
        raise ConfigError(
            f"GPU {absent[0]} is not here: this process sees {len(names)}; allowed: whole numbers below that, each once"
        )
    return ",".join(names[number] for number in wanted)


def server_arguments(options: SglangOptions, spec: EngineSpec, device: str) -> dict[str, Any]:
    """SGLang's arguments, by their Python names; the modules that adapters change are added where the base is read.

    Args:
        options: The user's.
        spec: What is served.
        device: ``cpu`` or ``cuda``.
    """
    slots = options.max_loras + 1  # the base model's requests take one, too
    given = {
        "context_length": options.max_model_len,
        "max_total_tokens": options.max_total_tokens,
        "mem_fraction_static": options.gpu_memory_utilization,
        "reasoning_parser": options.reasoning_parser,
        "tool_call_parser": options.tool_call_parser,
    }
    return {
        **_ALWAYS,
        "model_path": spec.base_model,
        "device": device,
        "dtype": "float32" if (options.dtype, device) == ("auto", "cpu") else options.dtype,
        "tp_size": options.tensor_parallel_size,
        "max_running_requests": options.max_num_seqs,
        "disable_radix_cache": not options.enable_prefix_caching,
        "max_lora_rank": spec.lora_rank,
        "max_loras_per_batch": slots,
        "max_loaded_loras": slots,
        **(_CPU if device == "cpu" else {}),
        **(_EAGER if options.enforce_eager else {}),
        **{name: value for name, value in given.items() if value is not None},
        **options.server_args,
    }
