"""What the model answers to held-out prompts, before training and after it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from art_core.client.trainable import TrainableModel
from art_core.demo.task import HELD_OUT, MAX_NEW_TOKENS, Fact, request_seed, reward

SAMPLES = 8


@dataclass(frozen=True)
class Answers:
    """The answers to one held-out sentence: some sampled at temperature 1, and the greedy one."""

    sentence: str
    sampled: tuple[str, ...]
    sampled_rewards: tuple[float, ...]
    greedy: str
    greedy_reward: float


@dataclass(frozen=True)
class Evaluation:
    """All held-out answers of one step."""

    model: str
    """Who answered, as the completions say: ``<name>@<step>``."""
    answers: tuple[Answers, ...]

    @property
    def sampled(self) -> float:
        """Mean reward at temperature 1."""
        return fmean(value for answer in self.answers for value in answer.sampled_rewards)

    @property
    def greedy(self) -> float:
        """Mean reward at temperature 0."""
        return fmean(answer.greedy_reward for answer in self.answers)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the run's state."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        rows = (
            Answers(
                sentence=row["sentence"],
                sampled=tuple(row["sampled"]),
                sampled_rewards=tuple(row["sampled_rewards"]),
                greedy=row["greedy"],
                greedy_reward=row["greedy_reward"],
            )
            for row in data["answers"]
        )
        return cls(data["model"], tuple(rows))


async def evaluate(model: TrainableModel, seed: int) -> Evaluation:
    """Ask the model for every held-out fact, with the same request seeds each time.

    Args:
        model: A registered model; the step that is served now answers.
        seed: The run's seed.
    """
    served = model.get_inference_name()
    answers = await asyncio.gather(*(_ask(model, served, fact, seed) for fact in HELD_OUT))
    return Evaluation(served, tuple(answers))


async def _ask(model: TrainableModel, served: str, fact: Fact, seed: int) -> Answers:
    async def answer(temperature: float, sample: int) -> str:
        completion = await model.openai_client().chat.completions.create(
            model=served,
            messages=fact.messages(),
            max_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=request_seed("held-out", seed, fact.sentence, sample),
        )
        return completion.choices[0].message.content or ""

    greedy, *sampled = await asyncio.gather(answer(0.0, 0), *(answer(1.0, sample) for sample in range(SAMPLES)))
    return Answers(
        sentence=fact.sentence,
        sampled=tuple(sampled),
        sampled_rewards=tuple(reward(text, fact) for text in sampled),
        greedy=greedy,
        greedy_reward=reward(greedy, fact),
    )
