"""A small agent for tests, written against the public API as a user would."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import art

QUESTIONS = ("Tom is 12 years old.", "Lucy is 40 years old.")


async def rollout(
    model: art.TrainableModel, question: str, reward: Callable[[str], float], name: str | None = None
) -> art.Trajectory:
    """One completion of six tokens, rewarded by its text."""
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": question}])
    completion = await model.openai_client().chat.completions.create(
        model=name or model.get_inference_name(), messages=trajectory.messages(), max_tokens=6
    )
    choice = completion.choices[0]
    trajectory.messages_and_choices.append(choice)
    trajectory.reward = reward(choice.message.content or "")
    return trajectory


async def gather(
    model: art.TrainableModel,
    reward: Callable[[str], float],
    questions: Sequence[str] = QUESTIONS,
    runs: int = 4,
) -> list[art.TrajectoryGroup]:
    """A group of `runs` rollouts per question."""
    return await art.gather_trajectory_groups(
        art.trajectory_group(rollout(model, question, reward) for _ in range(runs)) for question in questions
    )


def by_length(text: str) -> float:
    """A reward that differs between most texts."""
    return len(text) / 30


def constant(text: str) -> float:
    """A reward that teaches nothing."""
    return 0.5
