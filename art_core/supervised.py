"""Supervised fine-tuning's data: chats, their tokens, and the step that learns to say what the assistant said in them.

The line is the one of reinforcement learning: a batch, a step, a checkpoint, a publication. Only the batch comes from
elsewhere. A trained token's advantage is 1, and the loss is its cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from art_core.batch import TrainBatch, pad
from art_core.errors import ConfigError, TrajectoryError
from art_core.step import StepConfig
from art_core.tokenization import TokenizedSequence
from art_core.trajectory import Trajectory

AssistantTurns = Literal["all", "last"]


@dataclass(frozen=True)
class SupervisedChat:
    """One chat to learn from."""

    name: str
    """As messages to the user call it."""
    trajectory_index: int
    messages: Sequence[Mapping[str, Any]]
    """As the OpenAI API spells them."""
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def answers(self) -> list[int]:
        """Places of the assistant's messages; one that opens the chat answers nothing and is not learnt."""
        return [at for at, message in enumerate(self.messages) if at and message.get("role") == "assistant"]


@dataclass(frozen=True)
class EncodeRequest:
    """Chats, and how to render them."""

    chats: Sequence[SupervisedChat]
    turns: AssistantTurns = "all"
    """Which assistant messages are learnt: every one, or each chat's last."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template, the same as in the requests that the policy will be asked."""


@dataclass(frozen=True, eq=False)
class EncodedChat:
    """One sequence of a chat: T tokens."""

    chat_index: int
    tokens_T: NDArray[np.int32]
    trained_T: NDArray[np.bool_]
    """Whether the token is to be learnt; never the first."""


@dataclass(frozen=True)
class SupervisedConfig:
    """One supervised step's algorithm."""

    learning_rate: float | Sequence[float] = 5e-5
    """AdamW step size; a list: of each batch in turn. Source: openpipe-art's default."""
    batch_size: int = 2
    """Trajectories per optimizer update, in the order given; the last may have fewer. Source: openpipe-art's default.
    """
    assistant_turns: AssistantTurns = "all"
    """Which assistant messages are learnt. Source: openpipe-art."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template."""
    step: StepConfig = field(
        default_factory=lambda: StepConfig(
            loss_fn="cross_entropy", allow_training_without_logprobs=True, weight_decay=0.0, max_grad_norm=1.0
        )
    )
    """Everything else. Source: openpipe-art's defaults for weight decay and gradient norm."""

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size!r}; allowed: whole numbers from 1, or 'auto'")
        if self.assistant_turns not in ("all", "last"):
            raise ConfigError(f"assistant_turns is {self.assistant_turns!r}; allowed: 'all', 'last'")
        replace(self.step, update_learning_rates=self._rates)  # refuses one that is out of range

    @property
    def _rates(self) -> tuple[float, ...]:
        return tuple(self.learning_rate) if isinstance(self.learning_rate, Sequence) else (self.learning_rate,)

    def rates(self, trajectories: int) -> tuple[float, ...]:
        """Every batch's learning rate.

        Args:
            trajectories: How many there are in all.

        Raises:
            ConfigError: The list has another number of them than there are batches.
        """
        batches = math.ceil(trajectories / self.batch_size)
        if not isinstance(self.learning_rate, Sequence):
            return (self.learning_rate,) * batches
        if len(self.learning_rate) != batches:
            raise ConfigError(
                f"learning_rate has {len(self.learning_rate)} values; {trajectories} trajectories at batch_size "
                f"{self.batch_size} are {batches} batches: give one value for each, or one for all"
            )
        return tuple(self.learning_rate)


def chats_of(trajectories: Sequence[Trajectory]) -> list[SupervisedChat]:
    """Every chat of every trajectory.

    Args:
        trajectories: Rewards are not looked at.

    Raises:
        TrajectoryError: There is none, or a chat has no assistant message.
    """
    if not trajectories:
        raise TrajectoryError("there is no trajectory to learn from; give at least one")
    chats = []
    for index, trajectory in enumerate(trajectories):
        for number, history in enumerate(trajectory.histories()):
            name = f"trajectory {index}" + (f", history {number}" if number else "")
            messages = [dict(message) for message in history.messages()]
            tools = [dict(tool) for tool in history.tools] if history.tools else None
            chat = SupervisedChat(name, index, messages, tools)
            if not chat.answers:
                roles = ", ".join(str(message.get("role")) for message in messages) or "none"
                raise TrajectoryError(f"{name} has no assistant message that answers one before it; roles: {roles}")
            chats.append(chat)
    return chats


def make_supervised_batch(
    chats: Sequence[SupervisedChat], encoded: Sequence[EncodedChat], context_tokens: int
) -> tuple[TrainBatch, dict[str, float]]:
    """What a trainer learns from: each sequence in a group of its own, every trained token with an advantage of 1.

    Args:
        chats: What was encoded.
        encoded: Their sequences, in the order of the chats.
        context_tokens: The longest sequence that the base model takes.

    Returns:
        The batch, and metrics ``data/step_*``.

    Raises:
        TrajectoryError: A sequence is too long, or nothing in it is to be learnt.
        BatchError: The batch breaks its invariants.
    """
    for each in encoded:
        name, tokens = chats[each.chat_index].name, len(each.tokens_T)
        if tokens > context_tokens:
            raise TrajectoryError(
                f"{name} has {tokens} tokens; the base model's context is {context_tokens}: shorten or leave it out"
            )
        if not each.trained_T.any():
            raise TrajectoryError(f"{name} gives no token to learn: its assistant messages are empty")
    sequences = [_sequence(each, chats[each.chat_index], number) for number, each in enumerate(encoded)]
    trajectories = chats[-1].trajectory_index + 1
    batch = pad(sequences, np.ones(trajectories, np.float32))
    return batch, {
        "data/step_num_trajectories": float(trajectories),
        "data/step_num_sequences": float(len(sequences)),
        "data/step_history_splits": float(len(encoded) - len(chats)),
        "data/step_trainable_tokens": float(batch.loss_tokens),
    }


def supervised_step_config(config: SupervisedConfig, batch: TrainBatch) -> StepConfig:
    """The trainer's config: an update has the sequences of `batch_size` trajectories, at the learning rate of these.

    Where a template splits chats, trajectories have several sequences; an update then has as many sequences as before,
    at the learning rate of the trajectory that its first one is of.

    Args:
        config: As the user gave it.
        batch: What is learnt from.

    Raises:
        ConfigError: There are more or fewer learning rates than batches.
    """
    rates = config.rates(int(batch.trajectory_ids_B[-1]) + 1)
    first_U = batch.trajectory_ids_B[:: config.batch_size] // config.batch_size
    return replace(
        config.step,
        update_sequences=config.batch_size,
        update_learning_rates=tuple(rates[int(index)] for index in first_U),
    )


def _sequence(encoded: EncodedChat, chat: SupervisedChat, number: int) -> TokenizedSequence:
    T = len(encoded.tokens_T)
    return TokenizedSequence(
        tokens_T=encoded.tokens_T,
        loss_mask_T=encoded.trained_T,
        logprobs_T=np.where(encoded.trained_T, np.float32(np.nan), np.float32(0)),
        policy_steps_T=np.full(T, -1, np.int32),
        temperatures_T=np.ones(T, np.float32),
        trajectory_index=chat.trajectory_index,
        group_index=number,
    )
