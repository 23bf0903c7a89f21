"""One engine for a whole conformance class: started once, and empty again before every test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from art_core.capability import Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import PartOptions
from art_core.part import EnginePart
from art_core.protocols.engine import Endpoint, EngineSpec, InferenceEngine
from art_core.testing.adapter import AdapterShape
from art_core.testing.completion_client import CompletionClient
from art_core.testing.family import descendants
from art_core.testing.shelf import Shelf

BASE = "kit-base"
"""Public name of the base model."""
LORA_RANK = 8
"""Largest rank that the engine is started for; most of the kit's adapters have 4."""


class EngineBench:
    """An engine under test and what its tests need.

    Args:
        part: The part.
        options: Its options.
        base_model: Directory of its base model.
        root: For logs and checkpoints.
    """

    def __init__(self, part: EnginePart, options: PartOptions, base_model: Path, root: Path) -> None:
        self.part = part
        self.options = options
        self.capabilities = part.declares(options)
        self.base_model = base_model
        self.engine: InferenceEngine = part.create(options)
        self.spec = EngineSpec(str(base_model), BASE, LORA_RANK, root / "logs" / "engine.log")
        self.shelf = Shelf(root / "run", base_model)
        self.processes: list[psutil.Process] = []
        """What `start` started."""
        self._running: tuple[Endpoint, CompletionClient] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where the engine answers."""
        assert self._running, "the engine is not started"
        return self._running[0]

    @property
    def client(self) -> CompletionClient:
        """Asks the endpoint."""
        assert self._running, "the engine is not started"
        return self._running[1]

    @property
    def tolerance_nats(self) -> float:
        """How far two computations of one logprob may lie apart: the base's type decides."""
        return 1e-3 if self.endpoint.model.dtype == "float32" else 0.1

    async def start(self, spec: EngineSpec) -> None:
        """Start the engine."""
        before = descendants().keys()
        endpoint = await self.engine.start(spec)
        self._running = endpoint, CompletionClient(endpoint, self.base_model)
        self.processes = [process for pid, process in descendants().items() if pid not in before]

    async def ready(self) -> None:
        """Make it run, with no adapter loaded."""
        if self._running is None:
            await self.start(self.spec)
        await self.unload(*(await self.engine.health()).adapters)

    async def stop(self) -> None:
        """Stop the engine."""
        running, self._running = self._running, None
        if running is not None:
            await running[1].close()
        await self.engine.stop()

    async def load(self, name: str, seed: int, **shape: Any) -> StoredCheckpoint:
        """Store an adapter and load it."""
        stored = await self.shelf.store(AdapterShape(seed, **shape))
        await self.engine.load_adapter(name, stored)
        return stored

    async def unload(self, *names: str) -> None:
        """Unload adapters."""
        for name in names:
            await self.engine.unload_adapter(name)

    def tokens(self, length: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        rng = np.random.default_rng(seed)
        return [int(token) for token in rng.integers(0, self.endpoint.model.vocab_size, length)]

    async def fingerprint(self, name: str) -> NDArray[np.float32]:
        """What tells one name's weights from another's: logprobs of fixed tokens, or greedily chosen tokens."""
        if Capability.SCORE in self.capabilities:
            return (await self.engine.score(name, [np.asarray(self.tokens(24), np.int32)]))[0]
        answer = await self.client.complete(name, self.tokens(24), max_tokens=16, temperature=0)
        return np.asarray(answer.tokens + [-1] * (16 - len(answer.tokens)), np.float32)


def alike(bench: EngineBench, first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two fingerprints are of the same weights."""
    return bool(np.abs(first - second).max() <= bench.tolerance_nats)


async def gather(calls: Iterable[Any]) -> list[Any]:
    """Await all of them together."""
    return list(await asyncio.gather(*calls))


@pytest.mark.asyncio(loop_scope="session")
class EngineCase:
    """Fixtures that the author of an engine gives: `part` and `base_model`, and `options` where the defaults don't do.

    The base model is a local directory of a llama-like model (Hugging Face layout); a tiny random one will do.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def part(cls) -> EnginePart:
        """The part under test, as the plugin registers it."""
        raise NotImplementedError("override the fixture `part`: return load_part('engine', '<your part>')")

    @pytest.fixture(scope="class")
    @classmethod
    def base_model(cls) -> Path:
        """Directory of a base model that the engine can serve."""
        raise NotImplementedError("override the fixture `base_model`: return the directory of a small model")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, part: EnginePart) -> PartOptions:
        """The part's options; the defaults unless overridden."""
        return part.options()

    @pytest_asyncio.fixture(scope="class", loop_scope="session")
    @classmethod
    async def class_bench(
        cls, part: EnginePart, options: PartOptions, base_model: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> AsyncIterator[EngineBench]:
        """The class's one engine."""
        bench = EngineBench(part, options, base_model, tmp_path_factory.mktemp("engine-conformance"))
        yield bench
        await bench.stop()

    @pytest_asyncio.fixture(loop_scope="session")
    async def bench(self, class_bench: EngineBench) -> EngineBench:
        """The engine, running and without adapters."""
        await class_bench.ready()
        return class_bench
