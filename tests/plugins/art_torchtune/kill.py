"""The worker process that core hosts the trainer in, and kills of it."""

from __future__ import annotations

from collections.abc import Awaitable

import psutil
import pytest

from art_core.errors import TrainerUnavailableError
from art_core.testing.condition import TOLD_S, within


def trainer_process() -> psutil.Process:
    """The torchtune worker below this process."""
    workers = [each for each in psutil.Process().children() if "art_core.worker_server" in each.cmdline()]
    (found,) = (each for each in workers if "torchtune" in each.cmdline())
    return found


async def killed(process: psutil.Process, call: Awaitable[object]) -> None:
    """Kill a process; the call that it is making must say so within 5 seconds."""
    process.kill()
    with within(TOLD_S, "a kill is told"), pytest.raises(TrainerUnavailableError, match="SIGKILL"):
        await call
