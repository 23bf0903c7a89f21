"""`retry`: how often, how long between, and what is not tried again."""

from __future__ import annotations

import asyncio

import pytest

from art_core.client.retry import retry
from art_core.errors import ConfigError


class Flaky:
    """Raises the given errors, one a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self, answer: str) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return answer


async def test_until_it_answers() -> None:
    flaky, seen = Flaky(ValueError("1"), ValueError("2")), []

    @retry(max_attempts=3, delay=0, on_retry=lambda error, number: seen.append((str(error), number)))
    async def call(answer: str) -> str:
        return await flaky(answer)

    assert await call("x") == "x"
    assert seen == [("1", 1), ("2", 2)]
    assert call.__name__ == "call"


async def test_the_last_error_is_raised() -> None:
    flaky = Flaky(ValueError("1"), ValueError("2"), ValueError("3"))

    @retry(max_attempts=2, delay=0)
    async def call() -> str:
        return await flaky("x")

    with pytest.raises(ValueError, match="2"):
        await call()
    assert flaky.calls == 2


@pytest.mark.parametrize("error", [KeyError("other"), asyncio.CancelledError()])
async def test_other_exceptions_are_raised_at_once(error: Exception) -> None:
    flaky = Flaky(error)

    @retry(delay=0, exceptions=(ValueError,))
    async def call() -> str:
        return await flaky("x")

    with pytest.raises(type(error)):
        await call()
    assert flaky.calls == 1


async def test_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(delay_s: float) -> None:
        waits.append(delay_s)

    monkeypatch.setattr("art_core.client.retry.asyncio.sleep", sleep)

    @retry(max_attempts=4, delay=0.25, backoff_factor=2)
    async def call() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await call()
    assert waits == [0.25, 0.5, 1.0]


def test_what_can_t_be_retried_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_attempts is 0"):
        retry(max_attempts=0)


def test_a_function_that_blocks_is_tried_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("art_core.client.retry.time.sleep", waits.append)
    seen: list[int] = []

    @retry(max_attempts=4, delay=0.25, on_retry=lambda error, number: seen.append(number))
    def load(text: str) -> str:
        if len(seen) < 2:
            raise OSError
        return text

    assert (load("x"), load.__name__) == ("x", "load")
    assert (waits, seen) == ([0.25, 0.5], [1, 2])

    @retry(max_attempts=1)
    def once() -> None:
        raise OSError

    with pytest.raises(OSError):
        once()
    assert len(waits) == 2
