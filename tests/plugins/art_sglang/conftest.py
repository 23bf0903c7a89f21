"""The real SGLang on a CPU, in its managed environment, with the stand-ins of `shim/` on the path of its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from art_sglang.library import ENVIRONMENT
from art_sglang.options import SglangOptions

from art_core.config import Environment
from art_core.environment import create

SHIM = Path(__file__).parent / "shim"


@pytest.fixture(scope="session")
def sglang_options() -> Iterator[SglangOptions]:
    """For engines on this machine's CPU. The first use builds the environment, which takes minutes."""
    python = create(ENVIRONMENT, Environment.read().cache, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SHIM), prepend=os.pathsep)
        yield SglangOptions(device="cpu", python=str(python))
