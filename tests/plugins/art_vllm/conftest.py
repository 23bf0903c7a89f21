"""vLLM for the tests marked heavy: its environment, built where it does not stand, and a model that it can serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_vllm.options import VllmOptions
from art_vllm.requirement import ENVIRONMENT

from art_core.config import Environment
from art_core.environment import create
from tests.tiny_model import write_tiny_model
from tests.tool_model import write_tool_model


@pytest.fixture(scope="session")
def vllm_options() -> VllmOptions:
    """Options for a small server on this machine's CPU."""
    create(ENVIRONMENT, Environment.read().cache, "cpu")
    return VllmOptions(device="cpu", max_loras=4, cpu_kv_cache_gib=0.25, cpu_threads=1)


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with heads as wide as vLLM's attention for CPUs needs them (32)."""
    return write_tiny_model(tmp_path_factory.mktemp("vllm-tiny-model"), heads=2)


@pytest.fixture(scope="session")
def vllm_tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that calls tools, with such heads."""
    return write_tool_model(tmp_path_factory.mktemp("vllm-tool-model"), heads=2)
