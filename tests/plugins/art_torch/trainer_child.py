"""Run by test_trainer_resume in a process of its own: resume, train on, then run out of memory.

usage: trainer_child.py BASE_MODEL CHECKPOINT OUTPUT
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
from pathlib import Path

from art_torch.trainer import TorchTrainer

from art_core.errors import OutOfMemoryError
from art_core.step import StepConfig
from tests.plugins.art_torch.trainer_case import digests, make_batch, saved, started

CONFIG = StepConfig(learning_rate=3e-3, microbatch_tokens=60)


async def main(model: Path, checkpoint: Path, output: Path) -> None:
    trainer = await started(model, checkpoint)
    for seed in (3, 4, 5):
        metrics = dict((await trainer.step(make_batch(seed), CONFIG)).metrics)
    found = {"files": digests(await saved(trainer, output)), "metrics": metrics}
    print(json.dumps(found | await run_out_of_memory(trainer)))


async def run_out_of_memory(trainer: TorchTrainer) -> dict[str, object]:
    """A step under a limit of the address space that leaves it 64 MiB: torch's own allocator says no."""
    before = _digest(trainer)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    try:
        await trainer.step(make_batch(groups=300, rows_per_group=4), StepConfig(microbatch_tokens=1 << 20))
    except OutOfMemoryError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    unchanged = _digest(trainer) == before
    result = await trainer.step(make_batch(6), CONFIG)
    return {"message": message, "unchanged": unchanged, "goes_on": result.updated}


def _digest(trainer: TorchTrainer) -> str:
    assert trainer._learner is not None
    return hashlib.sha256(b"".join(trainer._learner.files().values())).hexdigest()


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:4])))
