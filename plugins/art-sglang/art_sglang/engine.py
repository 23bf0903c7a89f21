"""The SGLang engine as ART sees it: launches `art_sglang.serve.server` in SGLang's interpreter."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art_core.base_model import local_directory, require_shape
from art_core.config import Environment, Timeouts
from art_core.device import gpus
from art_core.engine_server import launch_server
from art_core.environment import interpreter
from art_core.errors import ConfigError, EngineStartError
from art_core.process import ProcessError
from art_core.protocols.engine import EngineSpec
from art_core.served_engine import Launched, ServedEngine
from art_sglang.failures import start_error
from art_sglang.library import ENVIRONMENT
from art_sglang.options import SglangOptions, resolve_device, server_arguments, visible_devices

_log = logging.getLogger("art.engine")
_CPU_VARIABLES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # Threads of a parallel region spin a few microseconds, then sleep: engine and trainer share the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}


class SglangEngine(ServedEngine):
    """Inference engine in a process group of its own; see `InferenceEngine`.

    Args:
        options: How it runs.
        timeouts: How long its calls may take.
    """

    def __init__(self, options: SglangOptions, timeouts: Timeouts | None = None) -> None:
        super().__init__("sglang", options.max_loras, timeouts)
        self._options = options

    async def _launch(self, spec: EngineSpec, settings: Mapping[str, Any]) -> Launched:
        device = resolve_device(self._options)
        variables = await self._variables(spec, device)
        if (directory := local_directory(spec.base_model)) is not None:
            require_shape(directory, self._options.tensor_parallel_size, self._options.max_model_len)
        own = {
            "arguments": server_arguments(self._options, spec, device),
            "max_loras": self._options.max_loras,
        }
        python = self._options.python or interpreter(ENVIRONMENT, Environment.read().cache)
        _log.info("engine 'sglang' starts in %s, in about a minute; its log is %s", python, spec.log_path)
        # where the server lays adapters out; it makes that itself, and nothing is left should this process be killed
        scratch = Path(tempfile.gettempdir()) / f"art-sglang-{uuid.uuid4().hex[:16]}"
        command = [python, "-P", "-m", "art_sglang.serve.server", str(scratch)]
        launched = await launch_server("sglang", command, {**settings, **own}, spec.log_path, variables, scratch)
        return Launched(*launched)

    async def _variables(self, spec: EngineSpec, device: str) -> dict[str, str]:
        if device == "cuda":
            present, _ = await asyncio.to_thread(gpus)
            visible = Environment.read().cuda_visible_devices
            return {"CUDA_VISIBLE_DEVICES": visible_devices(self._options, spec.device_ids, len(present), visible)}
        if spec.device_ids is not None:
            raise ConfigError(
                f"inference_gpu_ids are {list(spec.device_ids)} and SGLang would run on the CPU: option 'device' is "
                f"{self._options.device!r}, and the CUDA driver is asked only where it is not 'cpu'; leave the ids out"
            )
        return dict(_CPU_VARIABLES)

    def _start_error(self, error: ProcessError, log: str) -> EngineStartError:
        return start_error(error, log)
