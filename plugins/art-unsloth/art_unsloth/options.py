"""Options of the Unsloth trainer. Light: imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from art_core.config import HostedOptions
from art_core.errors import ConfigError


def variables(cache: Path) -> dict[str, str]:
    """Variables that the trainer's process is launched with: Unsloth and OpenMP read theirs while they are imported.

    Args:
        cache: ART's own.
    """
    return {
        # With it Unsloth believes in a GPU that is not there; nothing may train like that.
        "UNSLOTH_ALLOW_CPU": "0",
        # Its own words: it downloads a file from the hub to count machines.
        "UNSLOTH_DISABLE_STATISTICS": "1",
        # On a GPU its forward gives no logits otherwise; ours are compared with them once, at the start.
        "UNSLOTH_RETURN_LOGITS": "1",
        # It writes code there and imports it. Its default is a directory wherever the program was started.
        "UNSLOTH_COMPILE_LOCATION": str(cache / "unsloth-compiled"),
        # Threads of a parallel region spin a few microseconds, then sleep: engine and trainer share the cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "2000",
    }


Device = Literal["auto", "cpu", "cuda"]


class UnslothTrainerOptions(HostedOptions):
    """How the Unsloth trainer runs. Names shared with Unsloth's arguments mean the same."""

    part: ClassVar[str] = "unsloth"
    device: Device = "auto"
    """auto: CUDA, else Unsloth's CPU backend."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base weights, and what they compute in; the adapter is always float32. auto: bfloat16 on CUDA,
    float32 on a CPU."""
    load_in_4bit: bool = False
    """Keep the frozen base quantised to 4 bits (NF4, by bitsandbytes); they compute in `dtype`. An engine that serves
    the base unquantised then computes another function than the trainer. Unsloth's own default is True."""
    gradient_checkpointing: bool | Literal["unsloth"] = "unsloth"
    """Recompute activations in the backward pass: slower, less memory. "unsloth": on CUDA it keeps them in host memory
    meanwhile; on a CPU, where they are there already, it is as True."""
    max_seq_length: int | None = Field(default=None, ge=8)
    """Longest sequence in tokens; None: the base model's context."""
    packing: bool | None = None
    """Compute a group's common prompt once, in packed passes through transformers' own attention; CPU only. False:
    plain rows, for Unsloth's attention. None: True on a CPU, False on CUDA."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Torch threads on a CPU; None: torch's choice."""


def require_supported(device: Device, options: UnslothTrainerOptions) -> None:
    """Refuse options that Unsloth would leave out in silence on this device, or that its code there can't follow.

    Args:
        device: Where it runs; ``auto``: nobody knows yet.
        options: The trainer's.

    Raises:
        ConfigError: Names the option.
    """
    if device == "cuda" and options.packing:
        raise ConfigError(
            "packing is True and Unsloth runs on CUDA here, where its attention takes plain rows; leave packing out, "
            "or choose trainer='torch'"
        )
