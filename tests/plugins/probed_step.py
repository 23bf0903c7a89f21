"""Steps with the probe that a trainer in fp32 would store, for engines in other interpreters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_core.checkpoint import StoredCheckpoint
from art_core.local_store import LocalStore
from art_core.step import Probe
from art_core.testing.adapter import AdapterShape, write_adapter
from art_core.testing.shelf import Shelf
from tests.plugins.art_torch.engine_sample import Reference


class ProbedSteps:
    """Steps of one run, whose adapters' B grows by a little from each to the next.

    Args:
        root: An empty directory: the run's, and the reference's adapters.
        base: Directory of the base model.
    """

    def __init__(self, root: Path, base: Path) -> None:
        self._root, self._base = root, base
        self._shelf = Shelf(root / "run", base)
        self._reference = Reference(base, {})
        self._count = 0

    async def next(self) -> StoredCheckpoint:
        """Store the next step, from 1 on; what its probe says comes from transformers and PEFT."""
        number = self._count = self._count + 1
        shape = AdapterShape(seed=1, strength=0.2 + 0.002 * number)
        directory = self._root / f"adapter-{number}"
        directory.mkdir()
        write_adapter(self._base, directory, shape)
        self._reference.adapters[str(number)] = directory
        rng = np.random.default_rng(number)
        tokens = tuple(rng.integers(0, 256, 24).astype(np.int32) for _ in range(2))
        before, after = (self._logprobs(str(max(n, 1)), tokens) for n in (number - 1, number))
        scored = tuple(np.arange(24) > 3 for _ in tokens)
        probe = Probe(tokens, scored, before, after)
        return await LocalStore().commit(self._shelf.run, self._shelf.stage(number, shape, probe))

    def _logprobs(self, name: str, sequences: tuple[NDArray[np.int32], ...]) -> tuple[NDArray[np.float32], ...]:
        rows = [self._reference.logprobs(name, tokens.tolist()) for tokens in sequences]
        picked = [row[np.arange(len(row)), tokens[1:]] for row, tokens in zip(rows, sequences, strict=True)]
        return tuple(np.array([0.0, *each], np.float32) for each in picked)
