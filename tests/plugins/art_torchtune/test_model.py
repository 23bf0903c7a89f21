"""Torchtune's models, held to transformers and PEFT by logprobs: an argmax often agrees with wrong weights too."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.source import ROOT

pytestmark = pytest.mark.heavy

CHILD = Path(__file__).with_name("model_child.py")
NATS = 1e-4
"""Of 300 positions, in float32; measured: at most 1e-5."""
MODELS = [
    "llama",
    "llama, tied",
    "llama, scaled",
    "llama, scaled, tied",
    "llama, one key head",
    "mistral",
    "qwen2",
    "qwen2, tied",
]


@pytest.fixture(scope="module")
async def figures(torchtune_python: Path) -> dict[str, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        str(torchtune_python),
        str(CHILD),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(output)
    assert sorted(found) == sorted(MODELS)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_base_and_adapter_compute_what_transformers_and_peft_compute(
    figures: dict[str, dict[str, Any]], model: str
) -> None:
    assert figures[model]["base"] < NATS
    assert figures[model]["adapter"] < NATS


@pytest.mark.parametrize("model", MODELS)
def test_adapters_go_to_torchtunes_own_lora_and_back(figures: dict[str, dict[str, Any]], model: str) -> None:
    assert figures[model]["peft_to_tune"] < NATS
    assert figures[model]["back"] is True


def test_torchtunes_own_export_is_wrong_for_qwen2_alone(figures: dict[str, dict[str, Any]]) -> None:
    right = {model for model, found in figures.items() if found["torchtune_export_is_right"]}
    assert right == {model for model in MODELS if "qwen2" not in model}


def test_the_builders_default_scale_factor_would_be_seen(figures: dict[str, dict[str, Any]]) -> None:
    """Most argmaxes agree under it; the logprobs do not."""
    for model in ("llama", "llama, tied"):
        assert figures[model]["default_factor"] > 1000 * NATS
        assert figures[model]["default_factor_same_argmax"] > 0.8
