"""What the trainer needs in an interpreter of its own."""

from __future__ import annotations

from pathlib import Path

from art_core.environment import EnvironmentSpec

_SETS = Path(__file__).parent / "env"

ENVIRONMENT = EnvironmentSpec(
    name="torchtune",
    requirements={"cpu": _SETS / "cpu.txt", "gpu": _SETS / "gpu.txt"},
    distributions=("art-core", "art-torch", "art-torchtune"),
    library={"torchtune": "==0.6.1"},
    modules=("torchtune", "torchao"),
    space_bytes=10 << 30,
)
"""Of torchtune its last version: `art_torchtune.decoder` replaces a private attribute of its attention."""
