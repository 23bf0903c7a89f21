"""Options of the torch engine and trainer. Light: imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from art_core.config import HostedOptions, PartOptions

VARIABLES = {
    # Threads of a parallel region spin a few microseconds, then sleep: engine and trainer share the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}
"""Variables that the engine's and the trainer's process are launched with."""

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class TorchEngineOptions(PartOptions):
    """How the torch engine runs. Names shared with vLLM's arguments mean the same."""

    part: ClassVar[str] = "torch"
    device: Device = "auto"
    """auto: CUDA, else MPS, else CPU."""
    dtype: DType = "auto"
    """auto: bfloat16 on CUDA, float32 elsewhere (bfloat16 on a CPU leaves the behaviour proof without power)."""
    max_loras: int = Field(default=4, ge=2, le=64)
    """Adapters loaded at once."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest sequence, prompt and completion, in tokens; None: the model's own context."""
    max_num_seqs: int = Field(default=32, ge=1, le=1024)
    """Sequences generated at once; further ones wait."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Torch threads on a CPU; None: torch's choice."""


class TorchTrainerOptions(HostedOptions):
    """How the torch trainer runs."""

    part: ClassVar[str] = "torch"
    device: Device = "auto"
    """auto: CUDA, else MPS, else CPU."""
    dtype: DType = "auto"
    """Type of the frozen base weights; the adapter is always float32. auto: as the engine's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Torch threads on a CPU; None: torch's choice."""
