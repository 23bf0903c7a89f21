"""One trainer for a whole conformance class, in the worker process that core would host it in."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from art_core.batch import TrainBatch
from art_core.checkpoint import ADAPTER, OPTIMIZER
from art_core.compose import interpreter_of
from art_core.config import Environment, LoRAConfig, PartOptions, Timeouts
from art_core.part import TrainerPart
from art_core.protocols.trainer import TrainerInfo, TrainerSpec
from art_core.step import StepConfig
from art_core.testing.batch import BatchShape, make_batch
from art_core.worker import TrainerWorker

LARGE = StepConfig(learning_rate=1e-2, max_grad_norm=1.0, weight_decay=0.1)
"""A step that moves every weight visibly, decay included."""


class TrainerBench:
    """A trainer under test and what its tests need.

    Args:
        part: The part.
        worker: Hosts it.
        base_model: Directory of its base model.
        root: For saved states.
    """

    def __init__(self, part: TrainerPart, worker: TrainerWorker, base_model: Path, root: Path) -> None:
        self.capabilities = part.capabilities
        self.trainer = worker
        self.base_model = base_model
        self.spec = TrainerSpec(str(base_model), LoRAConfig(rank=4, alpha=8.0))
        self._root = root
        self._info: TrainerInfo | None = None

    @property
    def info(self) -> TrainerInfo:
        """What the trainer said when it was started last."""
        assert self._info, "the trainer is not started"
        return self._info

    async def reset(self, resume_from: Path | None = None) -> None:
        """Start it, from a saved state or afresh."""
        self._info = await self.trainer.start(self.spec, resume_from)

    def batch(self, seed: int = 0, groups: int = 2) -> TrainBatch:
        """A valid batch of random tokens."""
        return make_batch(self.info.model, BatchShape(seed, groups))

    def directory(self) -> Path:
        """A new empty directory."""
        directory = self._root / uuid.uuid4().hex
        directory.mkdir()
        return directory

    async def saved(self) -> Path:
        """Save the present state."""
        directory = self.directory()
        await self.trainer.save(directory)
        return directory

    async def state(self) -> dict[str, bytes]:
        """Bytes of the adapter's and the optimizer's file as `save` writes them now."""
        directory = await self.saved()
        return {name: (directory / name).read_bytes() for name in (ADAPTER, OPTIMIZER)}


@pytest.mark.asyncio(loop_scope="session")
class TrainerCase:
    """Fixtures that the author of a trainer gives: `part` and `base_model`, and `options` where the defaults don't do.

    The trainer runs in a worker process, as core hosts it, so the part must be installed under its name; for one that
    is not, `factory` names a ``module:callable`` instead. Run it on a CPU: there the contract asks for equal bits.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> TrainerPart:
        """The part under test, as the plugin registers it."""
        raise NotImplementedError("override the fixture `part`: return load_part('trainer', '<your part>')")

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls) -> Path:
        """Directory of a base model that the trainer can train."""
        raise NotImplementedError("override the fixture `base_model`: return the directory of a small model")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, part: TrainerPart) -> PartOptions:
        """The part's options; the defaults unless overridden."""
        return part.options()

    @pytest.fixture(scope="class")
    @classmethod
    def factory(cls, part: TrainerPart) -> str:
        """How the worker process finds the trainer: an installed part's name, or ``module:callable``."""
        return part.name

    @pytest_asyncio.fixture(scope="class", loop_scope="session")
    @classmethod
    async def class_bench(
        cls,
        part: TrainerPart,
        options: PartOptions,
        factory: str,
        base_model: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> AsyncIterator[TrainerBench]:
        """The class's one trainer."""
        root = tmp_path_factory.mktemp("trainer-conformance")
        log_path = root / "logs" / "trainer.log"
        values = options.model_dump(exclude={"python"})
        python = interpreter_of(part, options, Environment.read().cache)
        worker = TrainerWorker(factory, values, log_path, Timeouts(), part.variables, python)
        yield TrainerBench(part, worker, base_model, root)
        await worker.stop()

    @pytest_asyncio.fixture(loop_scope="session")
    async def bench(self, class_bench: TrainerBench) -> TrainerBench:
        """The trainer, with a fresh adapter."""
        await class_bench.reset()
        return class_bench
