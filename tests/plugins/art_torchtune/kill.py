"""Kills of the worker process that core hosts the trainer in."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable

import pytest

from art_core.errors import TrainerUnavailableError
from art_core.testing.condition import TOLD_S, within


async def killed(process_id: int, call: Awaitable[object]) -> None:
    """Kill a process; the call that it is making must say so within 5 seconds."""
    os.kill(process_id, signal.SIGKILL)
    with within(TOLD_S, "a kill is told"), pytest.raises(TrainerUnavailableError, match="SIGKILL"):
        await call
