"""Resuming is exact across processes, and a step that runs out of real memory changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from art_torch.trainer import TorchTrainer

from art_core.checkpoint import OPTIMIZER
from art_core.step import StepConfig
from tests.plugins.art_torch import trainer_child
from tests.plugins.art_torch.trainer_case import digests, make_batch, saved, spec, started

CONFIG = trainer_child.CONFIG


@pytest.fixture(scope="module")
async def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six steps in this process; three more from its third checkpoint in another one."""
    root = tmp_path_factory.mktemp("resume")
    trainer = await started(tiny_model)
    for seed in range(6):
        metrics = dict((await trainer.step(make_batch(seed), CONFIG)).metrics)
        if seed == 2:
            third = await saved(trainer, root / "3")
    sixth = await saved(trainer, root / "6")
    command = [sys.executable, "-m", trainer_child.__name__, tiny_model, third, root / "child"]
    child = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    other = json.loads(child.stdout.splitlines()[-1])
    return {"trainer": trainer, "third": third, "sixth": digests(sixth), "metrics": metrics, "other": other}


async def test_six_steps_are_three_and_three_in_a_new_process_bit_for_bit(run: dict[str, Any]) -> None:
    assert run["other"]["files"] == run["sixth"]
    assert run["other"]["metrics"] == run["metrics"]


async def test_resuming_in_place_is_exact_too(run: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    trainer: TorchTrainer = run["trainer"]
    await trainer.start(spec(tiny_model), run["third"])
    assert digests(await saved(trainer, tmp_path / "read")) == digests(run["third"])
    for seed in (3, 4, 5):
        await trainer.step(make_batch(seed), CONFIG)
    assert digests(await saved(trainer, tmp_path / "again")) == run["sixth"]


async def test_without_optimizer_files_the_optimizer_starts_afresh(
    run: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in run["third"].iterdir():
        if path.name != OPTIMIZER:
            (bare / path.name).write_bytes(path.read_bytes())
    trainer: TorchTrainer = run["trainer"]
    await trainer.start(spec(tiny_model), bare)
    now = digests(await saved(trainer, tmp_path / "now"))
    fresh = digests(await saved(await started(tiny_model), tmp_path / "fresh"))
    assert now[OPTIMIZER] == fresh[OPTIMIZER] != digests(run["third"])[OPTIMIZER]
    assert {name: now[name] for name in digests(bare)} == digests(bare)


async def test_running_out_of_memory_says_what_to_lower_and_changes_nothing(run: dict[str, Any]) -> None:
    message = run["other"]["message"]
    assert "did not fit in memory" in message and "microbatch_tokens (now 1048576" in message
    assert run["other"]["unchanged"] and run["other"]["goes_on"]
    assert StepConfig().microbatch_tokens < 1 << 20
