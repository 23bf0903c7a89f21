"""What giving the device to another part and taking it again promises."""

from __future__ import annotations

import asyncio

import psutil

from art_core.capability import Capability
from art_core.errors import TrainerError, TrainerUnavailableError
from art_core.testing.condition import TOLD_S, within
from art_core.testing.promise import need, promised, refused
from art_core.testing.trainer.bench import LARGE, TrainerBench, TrainerCase


class TrainerHandovers(TrainerCase):
    """Tests of `offload` and `onload`, where OFFLOAD is declared."""

    async def test_after_onload_everything_is_as_before(self, bench: TrainerBench) -> None:
        """OFFLOAD: after `offload` and `onload` weights, optimizer and the next step are exactly as before."""
        need(bench.capabilities, Capability.OFFLOAD)
        states = []
        for handovers in (0, 1, 2):
            await bench.reset()
            await bench.trainer.step(bench.batch(0), LARGE)
            for _ in range(handovers):
                await bench.trainer.offload()
                await bench.trainer.onload()
            await bench.trainer.step(bench.batch(1), LARGE)
            states.append(await bench.state())
        promised(states[0] == states[1] == states[2], "a step after offload and onload is bit for bit as without")

    async def test_handing_over_twice_is_as_once(self, bench: TrainerBench) -> None:
        """OFFLOAD: `offload` and `onload` are idempotent; `onload` of what was never offloaded changes nothing."""
        need(bench.capabilities, Capability.OFFLOAD)
        await bench.trainer.onload()
        await bench.trainer.step(bench.batch(), LARGE)
        before = await bench.state()
        for call in (bench.trainer.offload, bench.trainer.offload, bench.trainer.onload, bench.trainer.onload):
            await call()
        promised(await bench.state() == before, "calls made twice leave the state bit for bit")
        promised((await bench.trainer.step(bench.batch(1), LARGE)).updated, "a trainer goes on after it was onloaded")

    async def test_an_offloaded_trainer_saves_and_refuses_steps(self, bench: TrainerBench) -> None:
        """OFFLOAD: offloaded, `save` writes what it would have written before, and `step` is a TrainerError."""
        need(bench.capabilities, Capability.OFFLOAD)
        await bench.trainer.step(bench.batch(), LARGE)
        before = await bench.state()
        await bench.trainer.offload()
        promised(await bench.state() == before, "an offloaded trainer saves bit for bit what it held")
        with refused(TrainerError, "an offloaded trainer refuses a step"):
            await bench.trainer.step(bench.batch(1), LARGE)
        await bench.trainer.onload()
        promised(await bench.state() == before, "a step refused while offloaded leaves weights and optimizer")

    async def test_a_start_takes_the_memory_again(self, bench: TrainerBench) -> None:
        """OFFLOAD: `start` of an offloaded trainer resets it and needs no `onload`."""
        need(bench.capabilities, Capability.OFFLOAD)
        fresh = await bench.state()
        await bench.trainer.step(bench.batch(), LARGE)
        await bench.trainer.offload()
        await bench.reset()
        promised(await bench.state() == fresh, "a start of an offloaded trainer gives a fresh adapter")
        promised((await bench.trainer.step(bench.batch(), LARGE)).updated, "an offloaded trainer trains after a start")

    async def test_killed_in_a_hand_over_it_starts_again_from_what_was_saved(self, bench: TrainerBench) -> None:
        """OFFLOAD: killed in `offload` that is a TrainerUnavailableError within 5 s; a start mends it exactly."""
        need(bench.capabilities, Capability.OFFLOAD)
        await bench.trainer.step(bench.batch(), LARGE)
        saved, state = await bench.saved(), await bench.state()
        process = psutil.Process(bench.trainer.process_id)
        process.suspend()  # so that the call is under way
        call = asyncio.ensure_future(bench.trainer.offload())
        done, _ = await asyncio.wait({call}, timeout=0.2)
        promised(not done, "offload waits for its process")
        process.kill()
        said = "a process killed in a hand-over is said"
        with within(TOLD_S, said), refused(TrainerUnavailableError, said):
            await call
        await bench.reset(saved)
        promised(await bench.state() == state, "a start after that has what was saved, bit for bit")
        promised((await bench.trainer.step(bench.batch(1), LARGE)).updated, "the next step works")
