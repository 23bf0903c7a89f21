"""Choices, trajectories and groups as the gateway would have filled them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat.chat_completion import Choice

from art_core.trajectory import Trajectory, TrajectoryGroup


def choice(
    prompt: Sequence[int] | None,
    sampled: Sequence[int] | None,
    logprobs: Sequence[float] | None = None,
    **extra: Any,
) -> Choice:
    """A choice with token ids; `extra` adds or replaces what the gateway puts there, None leaves it out."""
    values = [-0.5 - 0.25 * i for i in range(len(sampled or ()))] if logprobs is None else logprobs
    filled = {"prompt_token_ids": prompt, "token_ids": sampled, "policy_step": 0, "temperature": 1.0} | extra
    return Choice.model_validate(
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {"role": "assistant", "content": f"said {sampled}"},
            "logprobs": {"content": [{"token": "x", "logprob": p, "top_logprobs": []} for p in values]},
            **{key: value for key, value in filled.items() if value is not None},
        }
    )


def trajectory(*choices: Choice, reward: float = 0.0, **fields: Any) -> Trajectory:
    """A chat of one question before each choice."""
    items: list[Any] = []
    for each in choices:
        items += [{"role": "user", "content": "and?"}, each]
    return Trajectory(messages_and_choices=items, reward=reward, **fields)


def group(*rewards: float, **fields: Any) -> TrajectoryGroup:
    """One short trajectory per reward."""
    return TrajectoryGroup([trajectory(choice([1, 2], [3, 4]), reward=reward) for reward in rewards], **fields)
