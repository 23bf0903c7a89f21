"""Streams under way while step after step is published; other seeds and ranks by `in_flight`'s command."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_vllm.options import VllmOptions

from tests.plugins.art_vllm.in_flight import Plan, fly, lined, small

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


async def test_64_streams_while_100_steps_are_published(
    vllm_options: VllmOptions, vllm_model: Path, tmp_path: Path
) -> None:
    plan = Plan(streams=64, steps=100, tokens=48, sample=24, strength=0.2)
    async with lined(small(vllm_options, 64, 1 / 32), vllm_model, tmp_path, plan) as line:
        await fly(line, plan)


async def test_8_streams_of_a_real_model_while_10_steps_are_published(
    vllm_options: VllmOptions, real_model: Path, tmp_path: Path
) -> None:
    plan = Plan(streams=8, steps=10, tokens=24, sample=6, strength=0.01)
    async with lined(small(vllm_options, 8, 1.0), real_model, tmp_path, plan) as line:
        await fly(line, plan)
