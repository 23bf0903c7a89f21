"""The demo's task: write two facts as JSON. Small enough to be learned on a laptop's processor in minutes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

SYSTEM_PROMPT = 'Write the facts as JSON, like {"name": "Ann", "age": 5}.'
NAMES = ("Tom", "Anna", "Ben", "Lucy", "Max", "Sara", "Leo", "Emma", "Jack", "Nina")
AGES = range(5, 61)
MAX_NEW_TOKENS = 18
"""Room for the longest right answer, and for little else."""


@dataclass(frozen=True)
class Fact:
    """One sentence, and what a right answer says about it."""

    sentence: str
    name: str
    age: int

    def messages(self) -> list[Any]:
        """The chat that asks for it, as the OpenAI API spells messages."""
        return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": self.sentence}]


HELD_OUT = (
    Fact("Maria turned 31 in May.", "Maria", 31),
    Fact("My brother Peter is 12.", "Peter", 12),
    Fact("At 44, Julia is the oldest in the team.", "Julia", 44),
)
"""Never trained on: other names, other wordings."""


def training_facts(seed: int, step: int, count: int) -> list[Fact]:
    """The facts of one step; the same for the same seed and step, so that a resumed run goes on as it would have.

    Args:
        seed: The run's seed.
        step: The step that is about to be made.
        count: How many, at most as many as there are names.
    """
    chance = random.Random(f"facts {seed} {step}")
    return [
        Fact(f"{name} is {age} years old.", name, age)
        for name, age in zip(chance.sample(NAMES, count), chance.choices(AGES, k=count), strict=True)
    ]


def request_seed(*what: object) -> int:
    """A seed for one completion, below 2**31, that depends on everything that tells it from the others."""
    return random.Random(" ".join(map(str, what))).getrandbits(31)


def reward(answer: str, fact: Fact) -> float:
    """How right an answer is.

    Args:
        answer: What the model wrote.
        fact: What it was asked to write down.

    Returns:
        0 to 1: 0.1 for a start with ``{``, 0.3 more for a JSON object, and 0.2 each for exactly the two keys,
        the right name and the right age.
    """
    text = answer.strip()
    score = 0.1 * text.startswith("{")
    try:
        value = json.loads(text)
    except ValueError:
        return score
    if not isinstance(value, dict):
        return score
    score += 0.3 + 0.2 * (value.keys() == {"name", "age"})
    return score + 0.2 * (value.get("name") == fact.name) + 0.2 * (value.get("age") == fact.age)
