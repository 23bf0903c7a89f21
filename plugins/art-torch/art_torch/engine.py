"""The torch inference engine as ART sees it: launches `art_torch.serve.server`. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from art_core.config import Timeouts
from art_core.engine_server import launch_server
from art_core.protocols.engine import EngineSpec
from art_core.served_engine import Launched, ServedEngine
from art_torch.options import VARIABLES, TorchEngineOptions


class TorchEngine(ServedEngine):
    """Inference engine in a process of its own; see `InferenceEngine`.

    Args:
        options: How it runs.
        timeouts: How long its calls may take.
    """

    def __init__(self, options: TorchEngineOptions, timeouts: Timeouts | None = None) -> None:
        super().__init__("torch", options.max_loras, timeouts)
        self._options = options

    async def _launch(self, spec: EngineSpec, settings: Mapping[str, Any]) -> Launched:
        own = {"options": self._options.model_dump(), "device_ids": spec.device_ids}
        command = [sys.executable, "-P", "-m", "art_torch.serve.server"]
        return Launched(*await launch_server("torch", command, {**settings, **own}, spec.log_path, VARIABLES))
