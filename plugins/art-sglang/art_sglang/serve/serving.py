"""A started SGLang with its adapters under public names: the contract, but for HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from art_core.adapter_file import AdapterFile, Site, read_adapter
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG
from art_core.errors import EngineError
from art_core.protocols.engine import LoadedAdapter
from art_sglang.serve.adapter_table import Adapter, AdapterTable
from art_sglang.serve.packing import expected_digest, joined, require_mergeable
from art_sglang.serve.runtime import Runtime
from art_sglang.serve.scheduler import Filled


@dataclass(frozen=True)
class ServingConfig:
    """What is served."""

    base_name: str
    """Public name of the base model."""
    sites: Mapping[str, Site]
    """Its adaptable modules."""
    lora_rank: int
    """Largest rank."""
    max_loras: int
    vocab_size: int
    context_tokens: int
    scratch: Path
    """A directory of this process's own."""


class Serving:
    """Loads, unloads and scores; requests go through `table`.

    Args:
        runtime: SGLang.
        config: What is served.
    """

    def __init__(self, runtime: Runtime, config: ServingConfig) -> None:
        self.runtime = runtime
        self.config = config
        self.table = AdapterTable(self, config.base_name, config.max_loras)
        self._loading = asyncio.Lock()
        """Loads and unloads happen one after the other: an unload after a cancelled load finds it done."""

    async def load(self, name: str, directory: Path) -> LoadedAdapter:
        """Load an adapter; when this returns, its slot is filled and its name answers.

        Args:
            name: Public name.
            directory: The checkpoint's.

        Raises:
            CheckpointCorruptError: Its files don't fit.
            EngineError: The name is taken, no slot is free, or SGLang refuses.
        """
        async with self._loading:
            adapter = self.table.reserve(name, directory)
            file = await asyncio.to_thread(read_adapter, directory, self.config.sites, self.config.lora_rank)
            require_mergeable(file)
            expecting = asyncio.ensure_future(asyncio.to_thread(self._expect, file))  # while SGLang loads
            ranks = await self._load(adapter, file)
            self.table.add(adapter)
            expected, expected_s = await expecting
            slot, slot_s = joined(each.digest for each in ranks), max(each.digest_s for each in ranks)
            return LoadedAdapter(name, slot, expected, slot_s + expected_s)

    async def unload_name(self, name: str) -> None:
        """Forget a name; requests that use it finish with its weights."""
        async with self._loading:
            await self.table.unload(name)

    async def unload(self, key: str) -> None:
        """See `adapter_table.Unloader`."""
        await self.runtime.unload(key)
        shutil.rmtree(self._place(key))

    def directories(self) -> dict[str, Path]:
        """Public name to the checkpoint that SGLang read, by SGLang's own list."""
        read = self.runtime.directories()
        served = self.table.adapters().items()
        return {name: (read[each.key] / ADAPTER).readlink().parent for name, each in served if each.key in read}

    async def score(self, name: str, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Logprobs of given tokens, but for each sequence's first.

        Raises:
            NoRouteError: The name is not served.
            EngineError: A sequence is too long or leaves the vocabulary.
        """
        longest, vocabulary = self.config.context_tokens, self.config.vocab_size
        for tokens in sequences:
            if not 1 <= len(tokens) <= longest or not all(0 <= token < vocabulary for token in tokens):
                raise EngineError(
                    f"a sequence to score has {len(tokens)} tokens or token ids outside the vocabulary; allowed: 1 to "
                    f"{longest} tokens, each from 0 to {vocabulary - 1}",
                    stage="score",
                )
        with self.table.using(name) as key:
            return await self.runtime.score(key, sequences)

    def _expect(self, file: AdapterFile) -> tuple[str, float]:
        """What the slots must hold, and how many seconds it took to tell."""
        start = time.perf_counter()
        return expected_digest(file, self.config.sites, self.runtime.layout), time.perf_counter() - start

    async def _load(self, adapter: Adapter, file: AdapterFile) -> list[Filled]:
        place = self._place(adapter.key)
        await asyncio.to_thread(_lay_out, place, adapter.directory, file)
        try:
            await self.runtime.load(adapter.key, place)
            try:
                return await self.runtime.fill_slot(adapter.key)
            except EngineError:
                await self.runtime.unload(adapter.key)
                raise
        except EngineError:
            shutil.rmtree(place)
            raise

    def _place(self, key: str) -> Path:
        return self.config.scratch / key.rpartition("#")[2]


def _lay_out(place: Path, directory: Path, file: AdapterFile) -> None:
    """Show SGLang an adapter and nothing else.

    Of a checkpoint's directory it would read every safetensors file, the optimizer's moments among them, and serve
    what it read last under a module's name. It knows no other scale than alpha / rank, so it is told an alpha that
    gives the adapter's.
    """
    place.mkdir()
    (place / ADAPTER).symlink_to(directory / ADAPTER)
    config = {
        "peft_type": "LORA",
        "r": file.rank,
        "lora_alpha": file.scale * file.rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in file.pairs}),
    }
    (place / ADAPTER_CONFIG).write_text(json.dumps(config))
