"""Options of the torchtune trainer. Light: imports no torch."""

from __future__ import annotations

from typing import ClassVar

from art_torch.options import TorchTrainerOptions


class TorchtuneTrainerOptions(TorchTrainerOptions):
    """How the torchtune trainer runs: as the torch trainer does."""

    part: ClassVar[str] = "torchtune"
