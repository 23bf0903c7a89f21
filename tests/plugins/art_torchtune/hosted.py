"""A trainer in the worker process that core hosts it in, and kills of that process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from art_core.config import HostedOptions, Timeouts
from art_core.errors import TrainerUnavailableError
from art_core.worker import TrainerWorker


@asynccontextmanager
async def worker(options: HostedOptions, log_path: Path) -> AsyncIterator[TrainerWorker]:
    """A worker for a trainer; stopped at the end."""
    values, python = options.model_dump(exclude={"python"}), {"python": options.python} if options.python else {}
    made = TrainerWorker(options.part, values, log_path, Timeouts(), **python)
    try:
        yield made
    finally:
        await made.stop()


def trainer_process() -> psutil.Process:
    """The torchtune worker below this process."""
    workers = [each for each in psutil.Process().children() if "art_core.worker_server" in each.cmdline()]
    (found,) = (each for each in workers if "torchtune" in each.cmdline())
    return found


async def killed(process: psutil.Process, call: Awaitable[object]) -> None:
    """Kill a process; the call that it is making must say so within 5 seconds."""
    process.kill()
    start = time.perf_counter()
    with pytest.raises(TrainerUnavailableError, match="SIGKILL"):
        await call
    assert time.perf_counter() - start < 5
