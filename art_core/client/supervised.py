"""Supervised fine-tuning as programs write it: options, learning-rate schedules, and chunks of a dataset."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from art_core.client.config import TrainSFTConfig
from art_core.client.keyword import check_keywords
from art_core.errors import ConfigError, nearest
from art_core.supervised import SupervisedConfig
from art_core.trajectory import Trajectory

Schedule = Literal["cosine", "linear", "constant"]

AUTO_BATCH_SIZE = 2
"""What ``batch_size="auto"`` means. Source: openpipe-art's default."""
_STEP_OPTIONS = frozenset(
    {
        "weight_decay",
        "max_grad_norm",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "microbatch_tokens",
        "logprob_chunk_tokens",
    }
)
"""Fields of `StepConfig` that mean something for a supervised step."""


def supervised_config(
    config: TrainSFTConfig | None,
    further: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
    template_variables: Mapping[str, Any],
) -> SupervisedConfig:
    """The step's algorithm, from what the caller of `train_sft` wrote.

    Args:
        config: Options; None: all defaults.
        further: ``weight_decay``, ``max_grad_norm``, ``adam_beta1``, ``adam_beta2``, ``adam_epsilon``,
            ``microbatch_tokens``, ``logprob_chunk_tokens``: see `StepConfig`.
        defaults: The run's; what concerns reinforcement learning alone is left out.
        template_variables: For the chat template.

    Raises:
        ConfigError: An option is unknown (the nearest is named) or out of range.
    """
    config = config or TrainSFTConfig()
    for key in further or {}:
        if key not in _STEP_OPTIONS:
            raise ConfigError(f"train_sft's _config has no option {key!r}; {nearest(key, _STEP_OPTIONS)}")
    memory = {key: value for key, value in defaults.items() if key in _STEP_OPTIONS - {"weight_decay", "max_grad_norm"}}
    made = SupervisedConfig(
        learning_rate=config.learning_rate,
        batch_size=AUTO_BATCH_SIZE if config.batch_size == "auto" else config.batch_size,
        assistant_turns=config.assistant_turns,
        template_variables=template_variables,
    )
    return replace(made, step=replace(made.step, **{**memory, **(further or {})}))


@dataclass(frozen=True)
class SFTChunk:
    """What one call of `train_sft` is given."""

    trajectories: list[Trajectory]
    config: TrainSFTConfig
    step: int
    """Batches before it, in all epochs."""
    epoch: int
    epoch_step: int
    """Batches before it, in its epoch."""


class ScheduleArgs(TypedDict, total=False):
    """Keywords of whatever goes through a dataset in batches."""

    epochs: int
    """How often the dataset is gone through; default 1."""
    batch_size: int
    """Trajectories a batch; default 2."""
    peak_lr: float
    """Highest learning rate; default 2e-4."""
    schedule_type: Schedule
    """Default ``"linear"``."""
    warmup_ratio: float
    """Share of all batches in which the rate rises; default 0.1."""
    assistant_turns: Literal["all", "last"]
    """Default ``"all"``."""


class ChunkArgs(ScheduleArgs, total=False):
    """Keywords of `create_sft_dataset_iterator`."""

    chunk_size: int
    """Batches a chunk; default 10."""
    shuffle: bool
    """Whether each epoch has an order of its own; default True."""
    seed: int
    """Of the order; the epoch's number is added. Default 42."""
    initial_step: int
    """Chunks that end at or before this batch are left out; default 0."""
    show_progress: bool
    """Accepted, not used: a program that wants a bar puts one around the iterator."""


def create_lr_schedule(
    total_steps: int, peak_lr: float, method: Schedule = "linear", warmup_steps: int = 0, min_lr: float = 0.0
) -> list[float]:
    """Learning rates, one a batch: a linear rise, then a fall.

    Args:
        total_steps: How many.
        peak_lr: Reached at the end of the rise.
        method: How it falls to `min_lr`: ``linear``, half a ``cosine``, or not at all (``constant``).
        warmup_steps: How many of them rise.
        min_lr: Where the rise begins and the fall ends.

    Raises:
        ConfigError: The method is unknown.

    Source:
        Loshchilov and Hutter 2017, SGDR (arXiv:1608.03983), equation 5, for cosine; Goyal et al. 2017
        (arXiv:1706.02677), section 2.2, for the gradual rise.
    """
    if method not in ("cosine", "linear", "constant"):
        raise ConfigError(f"method is {method!r}; allowed: 'cosine', 'linear', 'constant'")
    falling = max(1, total_steps - warmup_steps - 1)
    rises = [(step + 1) / warmup_steps for step in range(min(warmup_steps, total_steps))]
    falls = [_fall(method, step / falling) for step in range(total_steps - len(rises))]
    return [peak_lr if share == 1 else min_lr + (peak_lr - min_lr) * share for share in rises + falls]


def _fall(method: Schedule, done: float) -> float:
    if method == "constant":
        return 1.0
    return 1 - done if method == "linear" else (1 + math.cos(math.pi * done)) / 2


def create_sft_dataset_iterator(trajectories: Sequence[Trajectory], **options: Unpack[ChunkArgs]) -> Iterator[SFTChunk]:
    """Chunks for one call of `train_sft` each; the schedule runs over all of them.

        for chunk in create_sft_dataset_iterator(trajectories, epochs=3):
            await model.train_sft(chunk.trajectories, chunk.config)

    Args:
        trajectories: All of them.
        **options: See `ChunkArgs`.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    check_keywords("create_sft_dataset_iterator", options, ChunkArgs.__annotations__, ())
    epochs, size = whole("epochs", options, 1), whole("batch_size", options, AUTO_BATCH_SIZE)
    chunk_size = whole("chunk_size", options, 10)
    per_epoch = math.ceil(len(trajectories) / size)
    rates = rates_of(per_epoch * epochs, options)
    for epoch in range(epochs):
        order = list(trajectories)
        if options.get("shuffle", True):
            random.Random(options.get("seed", 42) + epoch).shuffle(order)
        for first in range(0, per_epoch, chunk_size):
            step, last = epoch * per_epoch + first, min(first + chunk_size, per_epoch)
            if step + last - first <= options.get("initial_step", 0):
                continue
            config = config_of(rates[step : step + last - first], options)
            yield SFTChunk(order[first * size : last * size], config, step, epoch, first)


def rates_of(batches: int, options: ScheduleArgs) -> list[float]:
    """Every batch's learning rate.

    Args:
        batches: How many.
        options: Peak, fall and rise.

    Raises:
        ConfigError: An option is out of range.
    """
    share = options.get("warmup_ratio", 0.1)
    if not 0 <= share <= 1:
        raise ConfigError(f"warmup_ratio is {share!r}; allowed: 0 to 1")
    return create_lr_schedule(
        batches, options.get("peak_lr", 2e-4), options.get("schedule_type", "linear"), int(batches * share)
    )


def config_of(rates: list[float], options: ScheduleArgs) -> TrainSFTConfig:
    """What one call of `train_sft` is given.

    Args:
        rates: Its batches'.
        options: Batch size and turns.
    """
    turns = options.get("assistant_turns", "all")
    return TrainSFTConfig(
        learning_rate=rates, batch_size=options.get("batch_size", AUTO_BATCH_SIZE), assistant_turns=turns
    )


def whole(name: str, options: Mapping[str, Any], default: int) -> int:
    """An option that counts something.

    Args:
        name: The option.
        options: As given.
        default: Where it is not.

    Raises:
        ConfigError: It is no whole number from 1.
    """
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; allowed: whole numbers from 1")
    return value
