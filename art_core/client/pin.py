"""Which step a block of a program has pinned: inside it, `model.get_inference_name()` is that step's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from art_core.client.model import Model

_pinned: ContextVar[Mapping[tuple[str, str], int]] = ContextVar("pinned", default={})  # noqa: B039 - never changed


@contextmanager
def pinned(model: Model[Any], step: int) -> Iterator[None]:
    """Pin a step of a model for the block and for the tasks that are started in it.

    Args:
        model: Whose step.
        step: Which step.
    """
    token = _pinned.set({**_pinned.get(), (model.project, model.run_name): step})
    try:
        yield
    finally:
        _pinned.reset(token)


def pinned_step(model: Model[Any]) -> int | None:
    """The step that the running code has pinned; None where it has pinned none."""
    return _pinned.get().get((model.project, model.run_name))
