"""Which steps a policy lets go: rules together, never the newest, never what is protected."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.errors import ConfigError
from art_core.retention import Plan, Retention, scores


def test_by_default_every_step_stays_and_the_newest_two_keep_their_optimizer() -> None:
    assert Retention().plan(range(5), {}) == Plan(frozenset(), frozenset({0, 1, 2}))
    assert Retention(optimizer=None).plan(range(5), {}) == Plan(frozenset(), frozenset())


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(latest=3), {7, 8, 9}),
        (Retention(every=4), {0, 4, 8, 9}),
        (Retention(best="x"), {0, 2, 9}),
        (Retention(latest=1, every=5, best="x"), {0, 2, 5, 9}),
        (Retention(latest=100), set(range(10))),
    ],
)
def test_the_rules_together(retention: Retention, kept: set[int]) -> None:
    plan = retention.plan(range(10), {2: 1.0, 1: 0.5, 77: 9.0})
    assert set(range(10)) - plan.delete == kept


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({}, set(range(10))),
        ({4: 1.0}, set(range(10))),
        ({4: 1.0, 5: 0.5, 6: 0.0}, {0, 1, 2, 3, 4, 7, 8, 9}),
        ({0: 0.0, 3: 2.0, 6: 1.0}, {3, 7, 8, 9}),
    ],
)
def test_no_step_is_beaten_by_others_before_its_value_is_known(scores: dict[int, float], kept: set[int]) -> None:
    """It may be logged later, or was on a machine that is lost."""
    assert set(range(10)) - Retention(best="x").plan(range(10), scores).delete == kept


@pytest.mark.parametrize(
    "values", [{"latest": 0}, {"every": -1}, {"optimizer": 0}, {"latest": 2.5}, {"every": "3"}, {"optimizer": True}]
)
def test_a_number_that_is_none_from_one_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 or more, or None"):
        Retention(**values)


@pytest.mark.parametrize("best", ["", 5, ["val/reward"]])
def test_what_is_no_metric_is_refused(best: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: the name of a metric, or None"):
        Retention(best=best)


def test_scores_are_means_of_finite_numbers() -> None:
    lines = [
        {"training_step": 1, "r": 1.0},
        {"training_step": 1, "r": 2.0},
        {"training_step": 2, "r": float("nan")},
        {"training_step": 3, "other": 1.0},
    ]
    assert scores(lines, "r") == {1: 1.5}


small = st.none() | st.integers(1, 5)


@given(st.sets(st.integers(0, 50), min_size=1), st.sets(st.integers(0, 50)), small, small, small)
def test_the_newest_and_the_protected_always_stay(
    steps: set[int], protected: set[int], latest: int | None, every: int | None, optimizer: int | None
) -> None:
    plan = Retention(latest=latest, every=every, optimizer=optimizer).plan(steps, {}, protected)
    assert not plan.delete & ({max(steps)} | protected) and plan.delete <= steps
    assert max(steps) not in plan.drop_optimizer and not plan.drop_optimizer & plan.delete
