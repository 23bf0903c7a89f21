"""What resuming promises: from a trainer's own files, from another trainer's, from damaged ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, OPTIMIZER
from art_core.errors import CheckpointCorruptError
from art_core.testing.adapter import DAMAGES, AdapterShape, write_adapter
from art_core.testing.condition import LONGEST_S
from art_core.testing.promise import need, promised, refused
from art_core.testing.trainer.bench import LARGE, TrainerBench, TrainerCase

_UNFIT = sorted(set(DAMAGES) - {"a rank above the engine's"})


class TrainerResumes(TrainerCase):
    """Tests of `start` from files."""

    async def test_a_resumed_trainer_goes_on_exactly(self, bench: TrainerBench) -> None:
        """OPTIMIZER_STATE: `start(resume_from)` is the saved state, and the next step is as without the stop."""
        need(bench.capabilities, Capability.OPTIMIZER_STATE)
        await bench.trainer.step(bench.batch(0), LARGE)
        saved, state = await bench.saved(), await bench.state()
        await bench.trainer.step(bench.batch(1), LARGE)
        went_on = await bench.state()
        await bench.reset(saved)
        promised(await bench.state() == state, "a resumed trainer holds the saved weights and optimizer bit for bit")
        await bench.trainer.step(bench.batch(1), LARGE)
        promised(await bench.state() == went_on, "a resumed trainer's next step is bit for bit as without the stop")

    async def test_without_optimizer_files_the_optimizer_starts_afresh(self, bench: TrainerBench) -> None:
        """A `resume_from` without optimizer files: the adapter is the saved one, whatever was trained before."""
        await bench.trainer.step(bench.batch(0), LARGE)
        saved = await bench.saved()
        (saved / OPTIMIZER).unlink(missing_ok=True)
        states = []
        for seed in (1, 2):
            await bench.trainer.step(bench.batch(seed), LARGE)
            await bench.reset(saved)
            adapter = (await bench.state())[ADAPTER]
            promised(adapter == (saved / ADAPTER).read_bytes(), "the adapter is the saved one bit for bit")
            await bench.trainer.step(bench.batch(3), LARGE)
            states.append(await bench.state())
        promised(states[0] == states[1], "without optimizer files nothing of the old optimizer is left")

    async def test_an_adapter_of_another_trainer_is_taken_in_exactly(self, bench: TrainerBench) -> None:
        """`start` from another trainer's adapter in PEFT's layout: `save` gives the same values."""
        lora, other = bench.spec.lora, bench.directory()
        write_adapter(bench.base_model, other, AdapterShape(rank=lora.rank, alpha=lora.alpha))
        await bench.reset(other)
        expected, seen = load_file(other / ADAPTER), load_file((await bench.saved()) / ADAPTER)
        promised(expected.keys() == seen.keys(), "another trainer's adapter keeps its tensors", seen.keys())
        same = all(np.array_equal(expected[name], seen[name]) for name in expected)
        promised(same, "another trainer's adapter is taken in exactly")

    async def test_an_optimizer_state_of_another_layout_starts_afresh_with_a_warning(self, bench: TrainerBench) -> None:
        """An optimizer file of an unknown layout: as without one, and a warning says so."""
        await bench.trainer.step(bench.batch(0), LARGE)
        saved, states = await bench.saved(), []
        for moments in ({"moment": np.ones(3, np.float32)}, None):
            (saved / OPTIMIZER).unlink(missing_ok=True)
            if moments:
                save_file(moments, saved / OPTIMIZER, {"layout": "another trainer's"})
            with optimizer_warning() as heard:
                await bench.reset(saved)
                said = not moments or await asyncio.to_thread(heard.wait, LONGEST_S)
            promised(said, "a warning says that the optimizer starts afresh, and not with the saved state")
            await bench.trainer.step(bench.batch(1), LARGE)
            states.append(await bench.state())
        promised(states[0] == states[1], "an optimizer state of another layout is as none at all")

    @pytest.mark.parametrize("damage", _UNFIT)
    async def test_files_that_do_not_fit_are_refused(self, bench: TrainerBench, damage: str) -> None:
        """`start` from files that don't fit the base model is a CheckpointCorruptError; another start then works."""
        fresh = await bench.state()
        await bench.trainer.step(bench.batch(), LARGE)
        saved = await bench.saved()
        DAMAGES[damage](saved)
        with refused(CheckpointCorruptError, f"start refuses {damage}"):
            await bench.reset(saved)
        await bench.reset()
        promised(await bench.state() == fresh, "after a refused start another gives a fresh adapter")


@contextmanager
def optimizer_warning() -> Iterator[Event]:
    """An event that is set as soon as the trainer warns of an optimizer; its lines come some time after a call."""
    heard, logger = Event(), logging.getLogger("art.trainer")

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "optimizer" in record.getMessage():
                heard.set()

    handler = Ear(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
