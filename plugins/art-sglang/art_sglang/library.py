"""Which SGLang fits, and how to get it."""

from __future__ import annotations

from pathlib import Path

from art_core.environment import EnvironmentSpec

_SETS = Path(__file__).parent / "env"

ENVIRONMENT = EnvironmentSpec(
    name="sglang",
    requirements={"gpu": _SETS / "gpu.txt", "cpu": _SETS / "cpu.txt"},
    distributions=("art-core", "art-sglang"),
    library={"sglang": "==0.5.23"},
    modules=("sglang",),
    python="==3.11.*",
    space_bytes=12 << 30,
)
"""Private parts of SGLang are read for the weight proof, so one version fits: the one that the tests ran."""
