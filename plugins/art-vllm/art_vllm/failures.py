"""The table of vLLM's failures: what its log or its answers say, and what that means here.

The one place where they are turned into errors of ours, each with what to do about it. Causes stand before the
consequences that they usually bring along: of several lines in a log the first row that matches wins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from art_core.errors import ArtError, CheckpointCorruptError, EngineError, EngineUnavailableError, NoRouteError


@dataclass(frozen=True)
class _Cause:
    pattern: re.Pattern[str]
    advice: str
    """May name groups of the pattern."""


def _cause(pattern: str, advice: str) -> _Cause:
    return _Cause(re.compile(pattern), advice)


_START = (
    _cause(
        r"unrecognized arguments?: (?P<seen>[^\n]+)",
        "vLLM does not know the argument {seen}; correct engine_args",
    ),
    _cause(
        r"error: argument (?P<flag>[^\n:]+): (?P<why>[^\n]+)",
        "vLLM does not take the value of {flag} ({why}); correct engine_args",
    ),
    _cause(
        r"No module named '(?P<module>art_core|art_vllm)'",
        "its interpreter does not have {module}; leave the option python out (art env create vllm), or add it",
    ),
    _cause(
        r"operator torchvision::nms does not exist|libcudart\.so[^\n]*cannot open|torchvision[^\n]*undefined symbol",
        "packages of its interpreter are built for another torch (CUDA's beside a CPU's); build it from the plugin's "
        "pinned set: art env create vllm",
    ),
    _cause(
        r"No module named '(?P<module>[\w.]+)'", "its interpreter lacks {module}; build it anew: art env create vllm"
    ),
    _cause(
        r"CUDA driver version is insufficient|The NVIDIA driver on your system is too old[^\n]*",
        "the GPU's driver is older than vLLM's CUDA needs; update the driver",
    ),
    _cause(
        r"invalid device ordinal|CUDA_VISIBLE_DEVICES is set to[^\n]*|Invalid CUDA_VISIBLE_DEVICES[^\n]*",
        "a GPU was named that is not there; correct inference_gpu_ids or CUDA_VISIBLE_DEVICES",
    ),
    _cause(
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver[^\n]*",
        "it found no GPU; give VllmOptions(device='cpu') with an environment for it (art env create vllm --device cpu)",
    ),
    _cause(
        r"World size \((?P<seen>\d+)\) is larger than the number of available GPUs \((?P<there>\d+)\)",
        "tensor_parallel_size {seen} needs {seen} GPUs and {there} are there",
    ),
    _cause(
        r"number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<size>\d+)\)",
        "tensor_parallel_size {size} does not divide the model's {heads} attention heads",
    ),
    _cause(
        r"(?:CUDA out of memory|torch\.OutOfMemoryError|DefaultCPUAllocator: can't allocate memory|MemoryError)",
        "it ran out of memory; lower gpu_memory_utilization, max_model_len or max_loras, or free what others hold",
    ),
    _cause(
        r"(?:Free memory on device|No available memory for the cache blocks|KV cache is needed, which is larger)",
        "there is too little memory for keys and values; raise gpu_memory_utilization (on a CPU cpu_kv_cache_gib) or "
        "lower max_model_len",
    ),
    _cause(
        r"User-specified max_model_len \((?P<seen>\d+)\) is greater than the derived max_model_len[^\n]*",
        "max_model_len {seen} is longer than the model's context; lower it or leave it out",
    ),
    _cause(
        r"Unsupported CPU attention configuration: (?P<what>[^\n']+)",
        "vLLM's attention for this CPU can't compute this model ({what}); choose another model or another engine",
    ),
    _cause(r"(?P<model>\w+) does not support LoRA yet", "vLLM has no LoRA for {model}; choose another model"),
    _cause(r"Address already in use", "its port is taken; start it again"),
    _cause(
        r"LocalEntryNotFoundError|RepositoryNotFoundError|HFValidationError|couldn't connect to",
        "the base model is neither a local directory nor a hub name that can be reached; give a local directory in "
        "Hugging Face layout, or a hub name that is cached or online",
    ),
    _cause(
        r"(?:Cannot find any model weights|does not appear to have a file named|SafetensorError|HeaderTooLarge)",
        "the base model's files are not whole; give a directory in Hugging Face layout with safetensors weights",
    ),
)

ROOTS = (
    "where the server sees another file system, vllm_runtime['local_checkpoint_root'] and ['server_checkpoint_root'] "
    "must be one directory under two names"
)
"""What to do where a server does not find a checkpoint that is there."""

_BAD_ADAPTER = re.compile(r"expected target modules|doesn't contain tensors|size mismatch")
_FOREIGN = (
    _cause(
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank",
        "start the server with --max-lora-rank {rank}, or give lora_config a lower rank",
    ),
    _cause(r"LoRA is not enabled", "start the server with --enable-lora"),
    _cause(r"No adapter found", ROOTS),
    _cause(
        r"^Not Found$",
        "the server needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment, and VLLM_SERVER_DEV_MODE=1 for proofs",
    ),
)
"""Refusals that only a server of somebody else's gives: ours is started for what it is to do."""


def start_cause(log: str) -> str | None:
    """What a log says of a start that failed, with what to do; None where no row of the table matches.

    Args:
        log: Text of vLLM's log.
    """
    return _advice(_START, log)


def _advice(table: Sequence[_Cause], said: str) -> str | None:
    for row in table:
        if found := row.pattern.search(said):
            return row.advice.format(**found.groupdict())
    return None


def refusal(response: httpx.Response, what: str) -> ArtError:
    """The error that an answer of vLLM's means.

    Args:
        response: Its status is 4xx or 5xx.
        what: What was asked, for the message, e.g. ``"load adapter 'm@3'"``.
    """
    said = _message(response)
    text = f"engine 'vllm' could not {what}: {said} (status {response.status_code})"
    if step := _advice(_FOREIGN, said):
        text = f"{text}; {step}"
    if response.status_code in (401, 403):
        return EngineUnavailableError(f"{text}; the server has another key: correct vllm_runtime['api_key']")
    if response.status_code == 503 or "EngineCore encountered an issue" in said or "EngineDeadError" in said:
        return EngineUnavailableError(text)
    if _BAD_ADAPTER.search(said):
        return CheckpointCorruptError(text, stage="load")
    if response.status_code == 404 and re.search("model .* (does not exist|is not served)", said):
        return NoRouteError(text)
    return EngineError(text)


def _message(response: httpx.Response) -> str:
    try:
        data = response.json()
    except ValueError:
        return response.text[:500]
    match data:
        case {"error": {"message": str(message)}} | {"error": str(message)} | {"detail": str(message)}:
            return message
    return response.text[:500]


def death(log: str) -> str:
    """What to say of an engine that has died while it served.

    Args:
        log: The end of its log.
    """
    return f"engine 'vllm' has died: {start_cause(log) or 'its log says why'}"
