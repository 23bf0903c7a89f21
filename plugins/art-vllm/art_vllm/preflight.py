"""Whether what was asked for can run here, before anything is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from art_core.base_model import local_directory, require_shape
from art_core.config import Environment
from art_core.device import driver_is_loaded, gpus
from art_core.environment import interpreter
from art_core.environment.spec import misfit
from art_core.errors import ConfigError
from art_core.protocols.engine import EngineSpec
from art_vllm.argument import ANEW, Installed, find_installed, require_known
from art_vllm.options import VllmOptions
from art_vllm.requirement import ENVIRONMENT

_SETS = {"auto": None, "cpu": "cpu", "cuda": "gpu"}


@dataclass(frozen=True)
class Plan:
    """How the server is going to run."""

    python: str
    installed: Installed
    cuda: bool
    visible: str | None
    """Value for ``CUDA_VISIBLE_DEVICES``; None: as it is."""


def wants_cuda(options: VllmOptions) -> bool:
    """Whether these options mean GPUs on this machine."""
    return options.device == "cuda" or (options.device == "auto" and driver_is_loaded())


def plan(options: VllmOptions, spec: EngineSpec, environment: Environment) -> Plan:
    """Check all that can be known before the server is launched.

    Args:
        options: Ours.
        spec: What to serve.
        environment: This process's.

    Raises:
        ConfigError: Something does not fit; it is named.
        PluginUnusableError: There is no interpreter with vLLM.
    """
    directory = local_directory(spec.base_model)
    python = options.python or interpreter(ENVIRONMENT, environment.cache, _SETS[options.device])
    installed, cuda = find_installed(python), wants_cuda(options)
    if reason := misfit(ENVIRONMENT, {"vllm": installed.version}):
        raise ConfigError(f"the vLLM of {python} does not do: {reason}; {ANEW}")
    if installed.cpu_build == cuda:
        built, other = ("a CPU", "gpu") if cuda else ("CUDA", "cpu")
        raise ConfigError(
            f"vLLM {installed.version} of {python} is built for {built}, and device={options.device!r} means "
            f"{'GPUs' if cuda else 'the CPU'} here; try: art env create vllm --device {other}, or set another device"
        )
    require_known(options.engine_args, installed)
    if directory is not None:
        require_shape(directory, options.tensor_parallel_size, options.max_model_len)
    return Plan(python, installed, cuda, _visible(options, spec.device_ids, environment, cuda=cuda))


def _visible(
    options: VllmOptions, device_ids: Sequence[int] | None, environment: Environment, *, cuda: bool
) -> str | None:
    """The chosen GPUs as the caller's own ``CUDA_VISIBLE_DEVICES`` calls them."""
    if not cuda:
        if device_ids is not None:
            raise ConfigError(
                f"inference_gpu_ids are {list(device_ids)} and the engine runs on the CPU; leave them out, or run it "
                f"on GPUs (device='cuda')"
            )
        return None
    names, size = _gpu_names(environment.cuda_visible_devices), options.tensor_parallel_size
    if size > len(names):
        raise ConfigError(f"tensor_parallel_size is {size} and this machine shows {len(names)} GPUs")
    if device_ids is None:
        return None
    if any(each not in range(len(names)) for each in device_ids):
        raise ConfigError(f"inference_gpu_ids are {list(device_ids)}; this machine shows {len(names)} GPUs, from 0")
    if len(device_ids) != size:
        raise ConfigError(
            "Multi-GPU inference requires engine_args.tensor_parallel_size to match len(inference_gpu_ids)"
        )
    return ",".join(names[each] for each in device_ids)


def _gpu_names(visible: str | None) -> list[str]:
    """What a program here calls GPU 0, 1, and so on."""
    if visible is None:
        return [str(each) for each in range(len(gpus()[0]))]
    return [each for part in visible.split(",") if (each := part.strip())]
