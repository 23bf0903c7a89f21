"""A loaded model that answers jobs: the base, its adapters and the thread that runs them, put together once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

import torch

from art_core.errors import ConfigError, EngineError
from art_torch.base_model import LoadedBase, load_base
from art_torch.frozen_linear import freeze_head
from art_torch.options import TorchEngineOptions
from art_torch.serve.adapter_table import AdapterTable
from art_torch.serve.detokenizer import TextStream
from art_torch.serve.kv_cache import KVCache, default_budget_bytes
from art_torch.serve.lora_slot import LoRASlots
from art_torch.serve.model_runner import ModelRunner, probe_layers
from art_torch.serve.model_thread import ModelThread
from art_torch.serve.prefix_cache import PrefixCache
from art_torch.serve.request import Job, Window
from art_torch.serve.scheduler import Scheduler
from art_torch.serve.sequence import Sampling, Sequence, TokenLogprob, Update


@dataclass(frozen=True)
class ServingConfig:
    """What is served, and how."""

    options: TorchEngineOptions
    base_model: str
    base_name: str
    lora_rank: int
    device_ids: tuple[int, ...] | None = None
    chat_template: str | None = None


class Run:
    """The sequences of one job under way. Leaving the block drops those that have not finished."""

    def __init__(self, thread: ModelThread, sequences: list[Sequence], queue: asyncio.Queue[Update]) -> None:
        self._thread = thread
        self._queue = queue
        self.sequences = sequences

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sequence in self.sequences:
            sequence.cancelled = True
        self._thread.post(lambda: None)

    async def updates(self) -> AsyncIterator[Update]:
        """What is new, until every sequence has finished.

        Raises:
            EngineError: A forward pass failed.
        """
        left = len(self.sequences)
        while left:
            update = await self._queue.get()
            if update.error is not None:
                raise EngineError(f"the forward pass failed: {update.error}", stage="serve")
            left -= update.finish_reason is not None
            yield update


class Serving:
    """Answers jobs on one base model and its adapters."""

    def __init__(self, base: LoadedBase, config: ServingConfig, context_tokens: int) -> None:
        self.base = base
        self.window = Window(context_tokens, base.info.vocab_size, _eos_token_ids(base))
        shapes = probe_layers(base.model)
        freeze_head(base.model)
        slots = LoRASlots(base.model, config.options.max_loras, config.lora_rank)
        budget_bytes = default_budget_bytes(base.device)
        cache = KVCache(shapes, base.dtype, base.model.device, budget_bytes)
        prefixes = PrefixCache(budget_bytes // 4)
        self.adapters = AdapterTable(
            slots,
            config.base_name,
            lambda adapter: self.thread.post(lambda: prefixes.forget(adapter.load_id)),
        )
        self.thread = ModelThread(
            ModelRunner(base.model, cache, slots.segments),
            Scheduler(cache, prefixes, config.options.max_num_seqs),
            self.adapters.release,
            config.options.cpu_threads,
        )

    @classmethod
    def load(cls, config: ServingConfig) -> Self:
        """Load the base model and make room for the adapters.

        Raises:
            ConfigError: The model can't be served with these options.
        """
        _use_gpu(config.device_ids)
        base = load_base(config.base_model, config.options.device, config.options.dtype, config.chat_template)
        longest = config.options.max_model_len or base.info.context_tokens
        if longest > base.info.context_tokens:
            raise ConfigError(
                f"max_model_len is {longest}; allowed: 8 to {base.info.context_tokens}, the context of "
                f"{config.base_model!r}"
            )
        return cls(base, config, longest)

    def run(self, job: Job) -> Run:
        """Start a job.

        Raises:
            NoRouteError: The model name is not served.
        """
        adapter = self.adapters.acquire(job.model, users=len(job.prompts) * job.n)
        queue: asyncio.Queue[Update] = asyncio.Queue()
        sequences: list[Sequence] = []
        for prompt, sampling in zip(job.prompts, job.samplings, strict=True):
            for number in range(job.n):
                sequence = Sequence(prompt, sampling, adapter, queue, TextStream(self.base.tokenizer, sampling.stop))
                sequence.choice = len(sequences)
                sequence.streams = job.stream
                sequence.seed(number)
                sequences.append(sequence)
        return self._start(sequences, queue)

    async def score(self, name: str, prompts: list[list[int]]) -> list[list[TokenLogprob]]:
        """Score given tokens in the passes that serve requests.

        Args:
            name: A served name.
            prompts: Token ids, at least one each.

        Returns:
            Per prompt an entry for every token but the first.

        Raises:
            NoRouteError: The name is not served.
            EngineError: A forward pass failed.
        """
        adapter = self.adapters.acquire(name, users=len(prompts))
        queue: asyncio.Queue[Update] = asyncio.Queue()
        sampling = Sampling(max_tokens=0, prompt_logprobs=0)
        with self._start([Sequence(prompt, sampling, adapter, queue, None) for prompt in prompts], queue) as run:
            async for _ in run.updates():
                pass
        return [sequence.prompt_scored for sequence in run.sequences]

    def _start(self, sequences: list[Sequence], queue: asyncio.Queue[Update]) -> Run:
        for sequence in sequences:
            self.thread.submit(sequence)
        return Run(self.thread, sequences, queue)


def _use_gpu(device_ids: tuple[int, ...] | None) -> None:
    if device_ids is None:
        return
    present = torch.cuda.device_count()
    if len(device_ids) != 1 or device_ids[0] not in range(present):
        raise ConfigError(
            f"inference_gpu_ids are {list(device_ids)}; engine 'torch' uses one GPU, and this machine has {present}; "
            "name one that is present, or leave it out"
        )
    torch.cuda.set_device(device_ids[0])


def _eos_token_ids(base: LoadedBase) -> frozenset[int]:
    generation = base.model.generation_config
    configured = generation.eos_token_id if generation is not None else None
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if isinstance(base.tokenizer.eos_token_id, int):
        ids.append(base.tokenizer.eos_token_id)
    return frozenset(ids)
