"""How a broken promise is reported: the promise first, then what was seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from art_core.capability import Capabilities, Capability


def promised(kept: object, promise: str, seen: object = "") -> None:
    """Fail with the promise's own words.

    Args:
        kept: Whether the promise held.
        promise: The promise, as the contract has it.
        seen: What was seen instead.
    """
    __tracebackhide__ = True
    if not kept:
        pytest.fail(f"broken promise: {promise}" + (f"; seen: {seen}" if seen != "" else ""))


@contextmanager
def refused(error: type[Exception], promise: str) -> Iterator[None]:
    """The block must raise that error, or one below it.

    Args:
        error: What the contract says is raised.
        promise: The promise, as the contract has it.
    """
    __tracebackhide__ = True
    try:
        yield
    except error:
        return
    except Exception as other:
        message = f"broken promise: {promise}; it raises {error.__name__}; seen: {type(other).__name__}: {other}"
        raise pytest.fail.Exception(message) from other
    pytest.fail(f"broken promise: {promise}; it raises {error.__name__}; seen: no error")


def need(capabilities: Capabilities, capability: Capability) -> None:
    """Skip a test of something that the part does not declare; that it is refused then is a test of its own."""
    if capability not in capabilities:
        pytest.skip(f"capability {capability.value!r} is not declared")
