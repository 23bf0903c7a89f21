"""Torchtune for the tests marked heavy: its environment, built where it does not stand, and options to run in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from art_torchtune.options import TorchtuneTrainerOptions
from art_torchtune.requirement import ENVIRONMENT

from art_core.config import Environment
from art_core.environment import create


@pytest.fixture(scope="session")
def torchtune_python() -> Path:
    """The environment's interpreter."""
    return create(ENVIRONMENT, Environment.read().cache, "cpu")


@pytest.fixture(scope="session")
def torchtune_options(torchtune_python: Path) -> TorchtuneTrainerOptions:
    """Options for this machine's CPU."""
    return TorchtuneTrainerOptions(device="cpu", cpu_threads=1, python=str(torchtune_python))
