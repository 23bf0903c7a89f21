"""A reference policy: another adapter on the same base, computed in place of the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from art_core.adapter_file import Site, read_adapter
from art_core.errors import ConfigError
from art_torch.tensor_file import as_tensor
from art_torch.train.low_rank import LowRank

_RANK_LIMIT = 512


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
    updates = {}
    for name, pair in file.pairs.items():
        a, b = (as_tensor(raw).to(adapted[name], torch.float32) for raw in pair)
        updates[name] = LowRank(a, b, file.scale)
    return updates
