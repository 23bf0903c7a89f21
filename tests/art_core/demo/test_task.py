from __future__ import annotations

import pytest

from art_core.demo.task import HELD_OUT, NAMES, Fact, request_seed, reward, training_facts

TOM = Fact("Tom is 37 years old.", "Tom", 37)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"name": "Tom", "age": 37}', 1.0),
        ('  {"age": 37, "name": "Tom"}\n', 1.0),
        ('{"name": "Tom", "age": "37"}', 0.8),
        ('{"name": "Tom", "age": 5}', 0.8),
        ('{"name": "Ann", "age": 5}', 0.6),
        ('{"name": "Tom", "age": 37, "job": "cook"}', 0.8),
        ('{"name": "Tom"}', 0.6),
        ("{}", 0.4),
        ('{"name": "Tom", "age": 37', 0.1),
        ("{Tom, 37}", 0.1),
        ("[1, 2]", 0.0),
        ("37", 0.0),
        ('Sure: {"name": "Tom", "age": 37}', 0.0),
        ("", 0.0),
    ],
)
def test_reward_counts_what_is_right(answer: str, expected: float) -> None:
    assert reward(answer, TOM) == pytest.approx(expected)


def test_facts_depend_on_seed_and_step_alone() -> None:
    assert training_facts(1, 3, 4) == training_facts(1, 3, 4)
    assert training_facts(1, 3, 4) != training_facts(1, 4, 4)
    assert training_facts(1, 3, 4) != training_facts(2, 3, 4)


def test_training_never_shows_what_is_held_out() -> None:
    facts = [fact for step in range(200) for fact in training_facts(1, step, 4)]
    assert {fact.name for fact in facts} == set(NAMES)
    assert {fact.name for fact in HELD_OUT}.isdisjoint(NAMES)
    assert {fact.sentence for fact in facts}.isdisjoint(fact.sentence for fact in HELD_OUT)
    assert all(len({fact.name for fact in training_facts(1, step, 4)}) == 4 for step in range(50))
    assert all(reward(f'{{"name": "{fact.name}", "age": {fact.age}}}', fact) == pytest.approx(1.0) for fact in facts)


def test_request_seeds_differ_and_fit_every_engine() -> None:
    seeds = {request_seed(1, step, fact, n) for step in range(8) for fact in "abcd" for n in range(8)}
    assert len(seeds) == 256
    assert all(0 <= seed < 2**31 for seed in seeds)
