"""A reference policy: another adapter on the same base, computed in place of the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from art_core.adapter_file import RawTensor, Site, read_adapter
from art_core.errors import ConfigError
from art_torch.train.low_rank import LowRank

_RANK_LIMIT = 512
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_reference(
    directory: Path, sites: Mapping[str, Site], adapted: Mapping[str, torch.device]
) -> dict[str, LowRank]:
    """Read and check an adapter that is to serve as a reference; its rank and scale may be its own.

    Args:
        directory: Holds adapter_config.json and adapter_model.safetensors.
        sites: The linear modules of the base model's layers by name.
        adapted: Those that the trained adapter changes, and where each is: only there can another stand in.

    Returns:
        Module name to update, float32; modules that it does not change are left out.

    Raises:
        CheckpointCorruptError: Names the file or tensor and what is wrong with it.
        ConfigError: It changes a module that the trained adapter does not.
    """
    file = read_adapter(directory, sites, _RANK_LIMIT)
    if beyond := sorted(file.pairs.keys() - adapted.keys()):
        raise ConfigError(
            f"the reference adapter in {directory} changes {beyond[0]!r}, which this run's adapter does not; allowed: "
            f"the run's own target modules, for example {min(adapted)!r}"
        )
    return {
        name: LowRank(_tensor(a, adapted[name]), _tensor(b, adapted[name]), file.scale)
        for name, (a, b) in file.pairs.items()
    }


def _tensor(raw: RawTensor, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(raw.data, dtype=_DTYPES[raw.dtype]).view(raw.shape).to(device, torch.float32)
