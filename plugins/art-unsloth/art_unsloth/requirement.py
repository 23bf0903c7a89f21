"""What the trainer needs in an interpreter of its own."""

from __future__ import annotations

from pathlib import Path

from art_core.environment import EnvironmentSpec

_SETS = Path(__file__).parent / "env"

ENVIRONMENT = EnvironmentSpec(
    name="unsloth",
    requirements={"cpu": _SETS / "cpu.txt", "gpu": _SETS / "gpu.txt"},
    distributions=("art-core", "art-torch", "art-unsloth"),
    library={"unsloth": "==2026.10.*"},
    modules=("unsloth", "unsloth_zoo"),
    space_bytes=12 << 30,
)
