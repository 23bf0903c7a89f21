"""Supervised fine-tuning from a JSONL file, one chat a line."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from art_core.client.keyword import check_keywords
from art_core.client.supervised import AUTO_BATCH_SIZE, ScheduleArgs, config_of, rates_of, whole
from art_core.errors import ConfigError, TrajectoryError
from art_core.trajectory import Trajectory

if TYPE_CHECKING:
    from art_core.client.trainable import TrainableModel

BATCHES_PER_STEP = 50
"""How many batches of a file make a step: so much is lost at most when the program is killed."""


class FileArgs(ScheduleArgs, total=False):
    """Keywords of `train_sft_from_file`."""

    initial_step: int
    """Batches to leave out at the beginning, as when a run goes on."""
    final_step: int | None
    """The batch to stop before; None: the last."""
    shuffle_buffer_size: int
    """Lines held for shuffling; default 10,000."""
    log_metrics: bool
    """Whether each step's metrics are logged; default True."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""
    _config: Mapping[str, Any] | None
    """As in `train_sft`."""


def get_file_row_count(file_path: str | Path) -> int:
    """How many lines of a JSONL file are not empty.

    Args:
        file_path: Ends in ``.jsonl``.

    Raises:
        ConfigError: It does not, or can't be read.
    """
    return sum(1 for _ in _lines(file_path))


def iterate_file(
    file_path: str | Path, epochs: int = 1, shuffle_buffer_size: int = 10_000, seed: int = 42, initial_skip: int = 0
) -> Iterator[Trajectory]:
    """Trajectories from a JSONL file, in an order of each epoch's own, without holding them all.

    A line is ``{"messages": [...], "tools": [...]}``; tools may be left out.

    Args:
        file_path: Ends in ``.jsonl``.
        epochs: How often the file is gone through.
        shuffle_buffer_size: Lines among which the next one is drawn; 1 keeps the file's order.
        seed: Of the order; the epoch's number is added.
        initial_skip: How many to leave out at the beginning.

    Raises:
        ConfigError: The file can't be read.
        TrajectoryError: A line holds no chat; names file and line.
    """
    return itertools.islice(_shuffled(file_path, epochs, shuffle_buffer_size, seed), initial_skip, None)


async def train_sft_from_file(model: TrainableModel[Any], file_path: str | Path, **options: Unpack[FileArgs]) -> None:
    """Fine-tune on a JSONL file (see `iterate_file`), a step at every 50 batches.

    Args:
        model: Registered.
        file_path: Ends in ``.jsonl``.
        **options: See `FileArgs`.

    Raises:
        ConfigError: An option is unknown or out of range, or the file can't be read.
        TrajectoryError: A line can't be learnt from; steps before it are kept.
        RunError: As `LocalBackend.train`.
    """
    check_keywords("train_sft_from_file", options, FileArgs.__annotations__, ())
    epochs, size = whole("epochs", options, 1), whole("batch_size", options, AUTO_BATCH_SIZE)
    rows = get_file_row_count(file_path)
    rates = rates_of(math.ceil(rows * epochs / size), options)
    first, last = options.get("initial_step", 0), options.get("final_step")
    found = iterate_file(file_path, epochs, options.get("shuffle_buffer_size", 10_000), initial_skip=first * size)
    remaining = rates[first:last]
    for start in range(0, len(remaining), BATCHES_PER_STEP):
        part = remaining[start : start + BATCHES_PER_STEP]
        await model.train_sft(
            list(itertools.islice(found, len(part) * size)),
            config_of(part, options),
            options.get("_config"),
            log_metrics=options.get("log_metrics", True),
        )


def _lines(file_path: str | Path) -> Iterator[tuple[int, str]]:
    path = Path(file_path)
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path} is no .jsonl file; give one with a JSON object on every line")
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def _shuffled(file_path: str | Path, epochs: int, buffered: int, seed: int) -> Iterator[Trajectory]:
    for epoch in range(epochs):
        order = random.Random(seed + epoch)
        held: list[tuple[int, str]] = []
        for each in _lines(file_path):
            held.append(each)
            if len(held) >= buffered:
                yield _trajectory(file_path, *held.pop(order.randrange(len(held))))
        order.shuffle(held)
        for each in held:
            yield _trajectory(file_path, *each)


def _trajectory(file_path: str | Path, number: int, line: str) -> Trajectory:
    where = f"{file_path}, line {number}"
    try:
        read = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrajectoryError(f"{where} is no JSON: {error}") from error
    messages = read.get("messages") if isinstance(read, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise TrajectoryError(f'{where} holds no chat; expected {{"messages": [{{"role": …, "content": …}}, …]}}')
    return Trajectory(messages_and_choices=messages, tools=read.get("tools"))
