"""What a victim does until it is killed: opens the run, makes steps, logs, and says where it is.

Lives of one shape. `small_life` holds engine and trainer in its own process and takes tenths of a second; in
`copying_life` every step is copied to a store in the background.
`real_life` is a program of a user's, on the torch engine and trainer in processes of their own.

A life says, a line each: ``open <step>`` with the step that it resumed at, ``training <step>`` before each step,
``served <step>`` once it is the default, ``error <type> <retryable>`` for a typed error, which it answers by the same
call again.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import art
from art.local import LocalBackend
from art_core.backend import Backend, BackendSpec, open_backend
from art_core.config import LoRAConfig, Timeouts
from art_core.errors import RunError
from art_core.events import Observers
from art_core.file_store import FileStore
from art_core.loop import train_step
from art_core.plugins import Plugins
from art_core.protocols.engine import EngineSpec
from art_core.protocols.store import CheckpointStore
from art_core.protocols.trainer import TrainerSpec
from art_core.run import RunDirectory
from art_core.step import StepConfig
from art_core.tier import Durable
from tests.art_core.rollout import choice, trajectory
from tests.faults.small import small_parts

T = TypeVar("T")
Say = Callable[..., None]
Life = Callable[[Path, int, Say], Awaitable[None]]
"""Takes the root of all runs, how many steps to make, and whom to tell."""

PROJECT, RUN, SMALL_BASE, COPIES = "faults", "victim", "bigram", "copies"
LORA = LoRAConfig(rank=4, alpha=8.0)
RATE = 1e-3


def groups() -> list[art.TrajectoryGroup]:
    """What every step of every life is trained on, so that a step's weights follow from its number alone."""
    return [
        art.TrajectoryGroup(
            trajectory(choice([1, 2, 3, 4], [10 * g + t, 5, 6, 7, t + 20]), reward=float(t)) for t in range(3)
        )
        for g in range(2)
    ]


def teller(fd: int) -> Say:
    """Says lines to a pipe, past the harness: its calls are no points."""
    write = os.write

    def say(*words: object) -> None:
        write(fd, (" ".join(map(str, words)) + "\n").encode())

    return say


async def open_small(root: Path, store: CheckpointStore | None = None, durable: Durable = "local") -> Backend:
    """A whole backend but for processes: see `small`."""
    run = RunDirectory.create_or_open(root, PROJECT, RUN, SMALL_BASE, LORA)
    engine = EngineSpec(SMALL_BASE, SMALL_BASE, LORA.rank, run.log_directory / "engine.log")
    spec = BackendSpec(RUN, run, engine, TrainerSpec(SMALL_BASE, LORA), Timeouts(), durable)
    return await open_backend(small_parts(store), spec, Observers(Plugins().manager))


async def copying_life(root: Path, steps: int, say: Say) -> None:
    await small_life(root, steps, say, FileStore(root / COPIES))


async def small_life(root: Path, steps: int, say: Say, store: CheckpointStore | None = None) -> None:
    backend = await open_small(root, store)
    model = art.TrainableModel(name=RUN, project=PROJECT, base_model=SMALL_BASE)
    model.base_path = str(root)
    say("open", backend.route.current().policy.step)
    for _ in range(steps):
        say("training", backend.route.current().policy.step + 1)
        outcome = await train_step(backend, groups(), StepConfig(learning_rate=RATE))
        step = outcome.policy.step
        say("served", step)
        await model.log(groups(), "train", metrics=outcome.metrics, step=step)
        model.overwrite_state({"step": step})
    await backend.close()


async def twice(call: Callable[[], Awaitable[T]], say: Say) -> T:
    """Answer one typed error by making the call again."""
    try:
        return await call()
    except RunError as error:
        say("error", type(error).__name__, error.retryable)
        return await call()


def real_life(base_model: Path) -> Life:
    """A user's program on that base model."""

    async def live(root: Path, steps: int, say: Say) -> None:
        model = art.TrainableModel(
            name=RUN,
            project=PROJECT,
            base_model=str(base_model),
            lora_config={"rank": LORA.rank, "alpha": LORA.alpha},
            _internal_config={"engine_args": {"cpu_threads": 1}, "trainer_args": {"cpu_threads": 1}},
        )
        async with LocalBackend(path=root, engine="torch", trainer="torch") as backend:
            await twice(lambda: model.register(backend), say)
            say("open", await model.get_step())
            for _ in range(steps):
                say("training", await model.get_step() + 1)
                result = await twice(lambda: backend.train(model, groups(), learning_rate=RATE), say)
                say("served", result.step)
                await model.log(groups(), "train", metrics=result.metrics, step=result.step)
                model.overwrite_state({"step": result.step})

    return live
