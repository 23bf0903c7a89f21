"""Spans add up, nest, and are counted when the block raises. The clock is set by the test: no waiting."""

from __future__ import annotations

import time

import pytest

from art_core.timing import Timings


class Clock:
    """Stands in for `time.perf_counter`; says nothing about its resolution."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_span_entered_twice_adds_up(clock: Clock) -> None:
    timings = Timings()
    for seconds in (2.0, 3.0):
        with timings.span("train"):
            clock.now_s += seconds
    assert timings.seconds == {"train": 5.0}


def test_nested_spans_each_count_their_own_wall_time(clock: Clock) -> None:
    timings = Timings()
    with timings.span("publish"):
        clock.now_s += 1
        with timings.span("load"):
            clock.now_s += 2
    assert timings.seconds == {"load": 2.0, "publish": 3.0}


def test_a_block_that_raises_is_counted_and_its_error_passes(clock: Clock) -> None:
    timings = Timings()
    with pytest.raises(ValueError, match="broken"), timings.span("commit"):
        clock.now_s += 4
        raise ValueError("broken")
    assert timings.seconds == {"commit": 4.0}


def test_metrics_name_the_span_and_the_unit(clock: Clock) -> None:
    timings = Timings()
    with timings.span("flip"):
        clock.now_s += 0.5
    assert timings.metrics() == {"time/step_flip_s": 0.5}
