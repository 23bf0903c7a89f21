"""Stage 2, first half: trajectories to token sequences. Tokens in, tokens out.

Training uses the ids and logprobs that the engine sampled, never a re-tokenisation of text. Each `Choice` brings its
own: ``prompt_token_ids``, ``token_ids`` (stop token included), ``policy_step`` and ``temperature`` as extra
attributes, and the logprobs in ``logprobs.content``. Where ``token_ids`` is absent the ids may be spelled in the
logprobs' tokens, ``"token_id:17"``.

Turns of one chat join append-only: where a turn's prompt begins with everything that came before, what lies between
is environment (not trained on). Where it does not, because a template rewrote the past, a new sequence starts.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai.types.chat.chat_completion import Choice

from art_core.chat import History, as_item
from art_core.errors import TokenizationError, TrajectoryError
from art_core.trajectory import Trajectory, TrajectoryGroup

LOGPROB_SLACK = 1e-4
"""A logprob may lie this far above 0 by rounding; it is then taken as 0."""

GREEDY_BELOW = 1e-5
"""Engines take the likeliest token at temperatures below this, as at 0, and report its logprob at 1."""

_SPELLING = "token_id:"
_log = logging.getLogger("art.tokenization")


@dataclass(frozen=True)
class TokenizationLimits:
    """What token ids, lengths and policy steps are allowed."""

    vocab_size: int
    """Token ids are in [0, vocab_size)."""
    context_tokens: int
    """Longest sequence."""
    current_step: int
    """Newest published step; stands in for a choice and trajectory that name none."""
    known_steps: Container[int] | None = None
    """Steps that this run has published; None: every step from 0 to `current_step`."""
    require_logprobs: bool = True
    """Whether a choice without logprobs is refused; else its tokens' are NaN."""

    def knows(self, step: int) -> bool:
        """Whether this run has published the step."""
        known = range(self.current_step + 1) if self.known_steps is None else self.known_steps
        return step in known


@dataclass(frozen=True, eq=False)
class TokenizedSequence:
    """T tokens; entry t of every array is about token t itself."""

    tokens_T: NDArray[np.int32]
    loss_mask_T: NDArray[np.bool_]
    """Whether the policy sampled the token."""
    logprobs_T: NDArray[np.float32]
    """Natural-log probability at `temperatures_T`; 0 where not sampled, NaN where sampled and not known."""
    policy_steps_T: NDArray[np.int32]
    """Step of the policy that sampled the token; -1 where not sampled."""
    temperatures_T: NDArray[np.float32]
    """Sampling temperature; 1 where not sampled."""
    trajectory_index: int
    """Which trajectory, counted through all groups in the order submitted."""
    group_index: int
    """Which group."""


@dataclass(frozen=True, eq=False)
class Tokenization:
    """All sequences of a step, in the order submitted."""

    sequences: Sequence[TokenizedSequence]
    history_splits: int
    """How often a turn's prompt did not extend what came before."""
    unknown_policy_choices: int
    """Choices without a policy step, taken as sampled by the current one."""


@dataclass(frozen=True, eq=False)
class _Turn:
    """One choice: its prompt's P ids, and S sampled tokens."""

    prompt_P: NDArray[np.int32]
    sampled_S: NDArray[np.int32]
    logprobs_S: NDArray[np.float32]
    policy_step: int | None
    temperature: float


def tokenize(groups: Sequence[TrajectoryGroup], limits: TokenizationLimits) -> Tokenization:
    """Turn every trajectory into one or more sequences.

    Args:
        groups: As submitted; `groups[g].trajectories[i]` is "group g, trajectory i" in messages.
        limits: What is allowed.

    Raises:
        TokenizationError: A choice lacks token ids or logprobs, or they don't fit together or the vocabulary.
        TrajectoryError: A trajectory has no choice, a sequence is too long, or a policy step is not known.
    """
    sequences: list[TokenizedSequence] = []
    splits = unknown = 0
    flat = [(g, i, trajectory) for g, group in enumerate(groups) for i, trajectory in enumerate(group)]
    for index, (g, i, trajectory) in enumerate(flat):
        where = f"group {g}, trajectory {i}"
        chats = _chats(trajectory, where, limits)
        nameless = sum(turn.policy_step is None for _, turns in chats for turn in turns)
        default = limits.current_step
        if nameless and trajectory.initial_policy_version is not None:
            default = _known(trajectory.initial_policy_version, where, limits)
        elif nameless:
            unknown += nameless
        for label, turns in chats:
            builders = _join(turns, default)
            splits += max(0, len(builders) - 1)
            sequences += [builder.build(index, g, label, limits) for builder in builders]
    if unknown:
        _warn_once("some choices name no policy step, nor do their trajectories: taken as sampled by the current one")
    return Tokenization(sequences, splits, unknown)


def _chats(trajectory: Trajectory, where: str, limits: TokenizationLimits) -> list[tuple[str, list[_Turn]]]:
    """The turns of every chat of a trajectory, each chat with its name for messages."""
    try:
        histories = trajectory.histories()
    except TrajectoryError as error:
        raise TrajectoryError(f"{where}: {error}") from error
    labels = [where, *(f"{where}, additional history {n}" for n in range(len(histories) - 1))]
    chats = [
        (label, [_turn(choice, name, limits) for name, choice in _choices(history, label)])
        for label, history in zip(labels, histories, strict=False)
    ]
    if not any(turns for _, turns in chats):
        raise TrajectoryError(
            f"{where} has no choice to learn from; append the completion's Choice to messages_and_choices, "
            f"not only its message"
        )
    return chats


def _choices(history: History, where: str) -> Iterator[tuple[str, Choice]]:
    try:
        items = [as_item(item) for item in history.messages_and_choices]
    except TrajectoryError as error:
        raise TrajectoryError(f"{where}: {error}") from error
    choices = [item for item in items if isinstance(item, Choice)]
    for number, choice in enumerate(choices):
        yield f"{where}, choice {number} (of {len(choices)})", choice


def _turn(choice: Choice, where: str, limits: TokenizationLimits) -> _Turn:
    extra = choice.model_extra or {}
    content = choice.logprobs.content if choice.logprobs else None
    sampled = extra.get("token_ids")
    if content is None and (limits.require_logprobs or sampled is None):
        raise TokenizationError(
            f"{where} has no logprobs; sample through the model's own client, or ask for logprobs. Choices that have "
            f"token_ids can be trained on without, with allow_training_without_logprobs=True"
        )
    if sampled is None:
        sampled = [_spelled(entry.token, where) for entry in content or ()]
    prompt = extra.get("prompt_token_ids")
    if not prompt:
        raise TokenizationError(f"{where} has no prompt_token_ids; sample through the model's own client")
    if content is not None and len(sampled) != len(content):
        raise TokenizationError(f"{where} has {len(sampled)} token ids and {len(content)} logprobs; they must be equal")
    return _Turn(
        prompt_P=_ids(prompt, f"{where}, prompt_token_ids", limits),
        sampled_S=_ids(sampled, f"{where}, token_ids", limits),
        logprobs_S=(
            np.full(len(sampled), np.nan, np.float32)
            if content is None
            else _logprobs([entry.logprob for entry in content], where)
        ),
        policy_step=_policy_step(extra.get("policy_step"), where, limits),
        temperature=_temperature(extra.get("temperature"), where),
    )


def _spelled(token: str, where: str) -> int:
    number = token.removeprefix(_SPELLING)
    if number == token or not number.isdecimal():
        raise TokenizationError(
            f"{where} has no token_ids, and its logprobs spell {token!r} instead of '{_SPELLING}<number>'; "
            f"sample through the model's own client"
        )
    return int(number)


def _ids(values: Sequence[int], where: str, limits: TokenizationLimits) -> NDArray[np.int32]:
    ids = np.asarray(values) if len(values) else np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind != "i":
        raise TokenizationError(f"{where} holds {ids.dtype} of shape {ids.shape}; allowed: a list of whole numbers")
    wrong = ids[(ids < 0) | (ids >= limits.vocab_size)]
    if wrong.size:
        raise TokenizationError(f"{where} holds {int(wrong[0])}; allowed: 0 to {limits.vocab_size - 1}")
    return ids.astype(np.int32)


def _logprobs(values: Sequence[float], where: str) -> NDArray[np.float32]:
    logprobs = np.asarray(values, np.float32)
    wrong = ~np.isfinite(logprobs) | (logprobs > LOGPROB_SLACK)
    if wrong.any():
        token = int(wrong.argmax())
        raise TokenizationError(f"{where} has logprob {values[token]!r} at token {token}; allowed: finite, at most 0")
    return np.minimum(logprobs, np.float32(0))


def _policy_step(value: Any, where: str, limits: TokenizationLimits) -> int | None:
    return None if value is None else _known(value, where, limits)


def _known(step: Any, where: str, limits: TokenizationLimits) -> int:
    if not isinstance(step, int) or not limits.knows(step):
        raise TrajectoryError(
            f"{where} was sampled by policy step {step!r}, which this run has not published; "
            f"its newest is {limits.current_step}"
        )
    return step


def _temperature(value: Any, where: str) -> float:
    if value is None:
        return 1.0
    if not (isinstance(value, int | float) and np.isfinite(np.float32(value)) and value >= 0):
        raise TokenizationError(f"{where} has temperature {value!r}; allowed: a finite number, 0 or above")
    if value < GREEDY_BELOW:
        _warn_once("some choices were sampled at temperature 0, which has no gradient: taken as sampled at 1")
        return 1.0
    return float(value)


@dataclass(eq=False)
class _Builder:
    """A sequence that is still growing."""

    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[int, _Turn, int]] = field(default_factory=list)
    """Where each turn's sampled tokens begin, the turn, and the policy step that sampled it."""

    def extends(self, prompt: list[int]) -> bool:
        return prompt[: len(self.tokens)] == self.tokens

    def append(self, turn: _Turn, prompt: list[int], policy_step: int) -> None:
        self.spans.append((len(prompt), turn, policy_step))
        self.tokens = prompt + turn.sampled_S.tolist()

    def build(self, trajectory: int, group: int, where: str, limits: TokenizationLimits) -> TokenizedSequence:
        length = len(self.tokens)
        if length > limits.context_tokens:
            raise TrajectoryError(
                f"{where} has a sequence of {length} tokens; the context holds {limits.context_tokens}"
            )
        sequence = TokenizedSequence(
            tokens_T=np.asarray(self.tokens, np.int32),
            loss_mask_T=np.zeros(length, np.bool_),
            logprobs_T=np.zeros(length, np.float32),
            policy_steps_T=np.full(length, -1, np.int32),
            temperatures_T=np.ones(length, np.float32),
            trajectory_index=trajectory,
            group_index=group,
        )
        for start, turn, policy_step in self.spans:
            span = slice(start, start + len(turn.sampled_S))
            sequence.loss_mask_T[span] = True
            sequence.logprobs_T[span] = turn.logprobs_S
            sequence.policy_steps_T[span] = policy_step
            sequence.temperatures_T[span] = turn.temperature
        return sequence


def _join(turns: Sequence[_Turn], default_step: int) -> list[_Builder]:
    builders: list[_Builder] = []
    for turn in turns:
        prompt = turn.prompt_P.tolist()
        if not builders or not builders[-1].extends(prompt):
            builders.append(_Builder())
        step = default_step if turn.policy_step is None else turn.policy_step
        builders[-1].append(turn, prompt, step)
    return builders


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
