"""Sequences carry exactly the tokens and logprobs that were sampled; what can't be trained on is named."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.chat_completion import Choice

from art_core import tokenization
from art_core.errors import TokenizationError, TrajectoryError
from art_core.tokenization import TokenizationLimits, TokenizedSequence, tokenize
from art_core.trajectory import History, Trajectory, TrajectoryGroup
from tests.art_core.rollout import choice, group, trajectory

LIMITS = TokenizationLimits(vocab_size=100, context_tokens=64, current_step=3)


def sequences(*trajectories: Trajectory, limits: TokenizationLimits = LIMITS) -> list[TokenizedSequence]:
    return list(tokenize([TrajectoryGroup(trajectories)], limits).sequences)


def test_one_turn() -> None:
    (got,) = sequences(trajectory(choice([5, 6, 7], [8, 9], [-0.25, -1.5], policy_step=2, temperature=0.7)))
    assert got.tokens_T.tolist() == [5, 6, 7, 8, 9]
    assert got.loss_mask_T.tolist() == [False, False, False, True, True]
    assert got.logprobs_T.tolist() == [0, 0, 0, -0.25, -1.5]
    assert got.policy_steps_T.tolist() == [-1, -1, -1, 2, 2]
    assert got.temperatures_T.tolist() == pytest.approx([1, 1, 1, 0.7, 0.7])
    kinds = [a.dtype for a in (got.tokens_T, got.loss_mask_T, got.logprobs_T, got.policy_steps_T, got.temperatures_T)]
    assert kinds == [np.int32, np.bool_, np.float32, np.int32, np.float32]


def test_turns_that_extend_the_past_join() -> None:
    t = trajectory(
        choice([1, 2], [3, 4], [-1, -2], policy_step=1),
        choice([1, 2, 3, 4, 5, 6], [7], [-3], policy_step=2, temperature=0.5),
    )
    result = tokenize([TrajectoryGroup([t])], LIMITS)
    (got,) = result.sequences
    assert got.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert got.loss_mask_T.tolist() == [False, False, True, True, False, False, True]
    assert got.logprobs_T.tolist() == [0, 0, -1, -2, 0, 0, -3]
    assert got.policy_steps_T.tolist() == [-1, -1, 1, 1, -1, -1, 2]
    assert got.temperatures_T.tolist() == [1, 1, 1, 1, 1, 1, 0.5]
    assert result.history_splits == 0


def test_a_prompt_that_rewrites_the_past_starts_a_new_sequence() -> None:
    t = trajectory(choice([1, 2], [3, 4]), choice([1, 2, 9, 5], [6]), choice([1, 2, 9, 5, 6, 7], [8]))
    result = tokenize([TrajectoryGroup([t])], LIMITS)
    assert [s.tokens_T.tolist() for s in result.sequences] == [[1, 2, 3, 4], [1, 2, 9, 5, 6, 7, 8]]
    assert result.history_splits == 1
    assert {s.trajectory_index for s in result.sequences} == {0}


def test_a_prompt_shorter_than_the_past_is_no_extension() -> None:
    result = tokenize([TrajectoryGroup([trajectory(choice([1, 2], [3]), choice([1, 2], [4]))])], LIMITS)
    assert [s.tokens_T.tolist() for s in result.sequences] == [[1, 2, 3], [1, 2, 4]]


def test_additional_histories_are_further_sequences_and_no_split() -> None:
    aside = History(messages_and_choices=[{"role": "user", "content": "x"}, choice([7], [8])])
    first = trajectory(choice([1], [2]), additional_histories=[aside])
    result = tokenize([TrajectoryGroup([first]), TrajectoryGroup([trajectory(choice([4], [5]))])], LIMITS)
    assert [s.tokens_T.tolist() for s in result.sequences] == [[1, 2], [7, 8], [4, 5]]
    assert [(s.trajectory_index, s.group_index) for s in result.sequences] == [(0, 0), (0, 0), (1, 1)]
    assert result.history_splits == 0


def test_trajectories_are_counted_through_all_groups() -> None:
    got = tokenize([group(0, 1), TrajectoryGroup([]), group(2)], LIMITS).sequences
    assert [(s.group_index, s.trajectory_index) for s in got] == [(0, 0), (0, 1), (2, 2)]


def test_a_chat_may_end_in_a_question_and_a_history_may_hold_no_choice() -> None:
    t = trajectory(choice([1], [2]), additional_histories=[History()])
    t.messages_and_choices.append({"role": "user", "content": "unanswered"})
    assert len(sequences(t)) == 1


def test_token_ids_may_be_spelled_in_the_logprobs() -> None:
    spelled = choice([1], None, [-0.5, -0.25])
    for entry, token in zip(spelled.logprobs.content, ("token_id:17", "token_id:4"), strict=True):
        entry.token = token
    (got,) = sequences(trajectory(spelled))
    assert got.tokens_T.tolist() == [1, 17, 4]


def test_the_policy_step_falls_back_to_the_trajectory_then_to_the_current_one(caplog: pytest.LogCaptureFixture) -> None:
    tokenization._warn_once.cache_clear()
    nameless = choice([1], [2], policy_step=None)
    told = tokenize([TrajectoryGroup([trajectory(nameless, initial_policy_version=1)])], LIMITS)
    assert told.sequences[0].policy_steps_T.tolist() == [-1, 1]
    assert told.unknown_policy_choices == 0
    with caplog.at_level(logging.WARNING, "art.tokenization"):
        for _ in range(2):
            guessed = tokenize([TrajectoryGroup([trajectory(nameless), trajectory(nameless)])], LIMITS)
    assert guessed.sequences[0].policy_steps_T.tolist() == [-1, 3]
    assert guessed.unknown_policy_choices == 2
    assert caplog.text.count("name no policy step") == 1


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-60, 9e-6])
def test_greedy_is_taken_as_temperature_1_and_said_once(temperature: float, caplog: pytest.LogCaptureFixture) -> None:
    tokenization._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "art.tokenization"):
        got = sequences(*[trajectory(choice([1], [2], temperature=temperature)) for _ in range(2)])
    assert [s.temperatures_T.tolist() for s in got] == [[1, 1], [1, 1]]
    assert caplog.text.count("temperature 0") == 1


def test_a_missing_temperature_is_1() -> None:
    assert sequences(trajectory(choice([1], [2], temperature=None)))[0].temperatures_T.tolist() == [1, 1]


def test_a_logprob_above_0_by_rounding_is_0() -> None:
    assert sequences(trajectory(choice([1], [2], [9e-5])))[0].logprobs_T.tolist() == [0, 0]


def test_a_completion_without_tokens_is_kept() -> None:
    (got,) = sequences(trajectory(choice([1, 2], [], [])))
    assert got.tokens_T.tolist() == [1, 2] and not got.loss_mask_T.any()


def _without_logprobs() -> Choice:
    bare = copy.deepcopy(choice([1], [2]))
    bare.logprobs = None
    return bare


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (_without_logprobs(), TokenizationError, "has no logprobs"),
        (choice([1], None, [-1.0]), TokenizationError, "has no token_ids, and its logprobs spell 'x'"),
        (choice(None, [2]), TokenizationError, "has no prompt_token_ids"),
        (choice([], [2]), TokenizationError, "has no prompt_token_ids"),
        (choice([1], [2, 3], [-1.0]), TokenizationError, "has 2 token ids and 1 logprobs"),
        (choice([1], [100]), TokenizationError, "token_ids holds 100; allowed: 0 to 99"),
        (choice([-1], [2]), TokenizationError, "prompt_token_ids holds -1; allowed: 0 to 99"),
        (choice([1], ["2"]), TokenizationError, "token_ids holds <U1"),
        (choice([1.5], [2]), TokenizationError, "prompt_token_ids holds float64"),
        (choice([1], [2, 3], [-1.0, math.nan]), TokenizationError, "has logprob nan at token 1; allowed: finite"),
        (choice([1], [2], [-math.inf]), TokenizationError, "has logprob -inf at token 0"),
        (choice([1], [2], [2e-4]), TokenizationError, "has logprob 0.0002 at token 0"),
        (choice([1], [2], temperature=-1.0), TokenizationError, "has temperature -1.0; allowed: a finite"),
        (choice([1], [2], temperature=math.nan), TokenizationError, "has temperature nan"),
        (choice([1], [2], policy_step=4), TrajectoryError, "policy step 4, .*newest is 3"),
        (choice([1], [2], policy_step=-1), TrajectoryError, "policy step -1,"),
        (choice([1], [2], policy_step="3"), TrajectoryError, "policy step '3',"),
    ],
)
def test_what_is_wrong_with_a_choice_is_named(broken: Choice, error: type[Exception], message: str) -> None:
    t = trajectory(choice([1], [2]), broken, choice([1], [2]))
    with pytest.raises(error, match=rf"^group 1, trajectory 2, choice 1 \(of 3\).*{message}"):
        tokenize([group(0), TrajectoryGroup([*group(0, 1), t])], LIMITS)


def test_a_fault_in_an_additional_history_says_so() -> None:
    aside = History(messages_and_choices=[choice(None, [2])])
    with pytest.raises(TokenizationError, match=r"trajectory 0, additional history 0, choice 0 \(of 1\) has no prompt"):
        sequences(trajectory(choice([1], [2]), additional_histories=[aside]))


@pytest.mark.parametrize("empty", [Trajectory(), trajectory(additional_histories=[History()])])
def test_a_trajectory_without_choices_is_refused(empty: Trajectory) -> None:
    with pytest.raises(TrajectoryError, match="group 0, trajectory 1 has no choice to learn from; append"):
        sequences(trajectory(choice([1], [2])), empty)


def test_a_message_object_in_place_of_a_choice_is_refused() -> None:
    t = trajectory(choice([1], [2]))
    t.messages_and_choices.append(choice([1], [2]).message)  # type: ignore[arg-type]
    with pytest.raises(TrajectoryError, match=r"group 0, trajectory 0: .*ChatCompletionMessage"):
        sequences(t)


def test_the_context_is_a_limit_that_may_be_reached() -> None:
    limits = TokenizationLimits(vocab_size=100, context_tokens=4, current_step=0)
    assert len(sequences(trajectory(choice([1, 2], [3, 4])), limits=limits)) == 1
    with pytest.raises(TrajectoryError, match="group 0, trajectory 0 has a sequence of 5 tokens; the context holds 4"):
        sequences(trajectory(choice([1, 2], [3]), choice([1, 2, 3, 4], [5])), limits=limits)


def test_only_published_steps_are_known() -> None:
    limits = TokenizationLimits(vocab_size=100, context_tokens=64, current_step=9, known_steps={5, 9})
    assert sequences(trajectory(choice([1], [2], policy_step=5)), limits=limits)
    with pytest.raises(TrajectoryError, match="policy step 7, which this run has not published"):
        sequences(trajectory(choice([1], [2], policy_step=7)), limits=limits)
    with pytest.raises(TrajectoryError, match="group 0, trajectory 0 was sampled by policy step 6"):
        sequences(trajectory(choice([1], [2], policy_step=None), initial_policy_version=6), limits=limits)


tokens = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@settings(deadline=None)  # a shared machine may pause
@given(st.lists(st.tuples(tokens, tokens, st.booleans()), min_size=1, max_size=6))
def test_joined_or_split_nothing_is_lost_or_invented(turns: list[tuple[list[int], list[int], bool]]) -> None:
    """Each turn either extends the chat or starts over with a first token that differs; the sequences say which."""
    choices: list[Choice] = []
    expected: list[tuple[list[int], list[bool]]] = []
    for number, (between, sampled, extends) in enumerate(turns):
        if extends and expected:
            past, mask = expected.pop()
        else:
            past, mask = [number], [False]  # no other sequence starts with this token
        prompt = past + between
        choices.append(choice(prompt, sampled, policy_step=number % 4))
        expected.append((prompt + sampled, mask + [False] * len(between) + [True] * len(sampled)))
    limits = TokenizationLimits(vocab_size=100, context_tokens=1000, current_step=3)
    result = tokenize([TrajectoryGroup([trajectory(*choices)])], limits)
    got = [(s.tokens_T.tolist(), s.loss_mask_T.tolist()) for s in result.sequences]
    assert got == expected
    assert result.history_splits == len(expected) - 1
    sampled_ids: list[Any] = [i for s in result.sequences for i in s.tokens_T[s.loss_mask_T].tolist()]
    assert sampled_ids == [i for c in choices for i in c.model_extra["token_ids"]]
    logprobs = np.concatenate([s.logprobs_T[s.loss_mask_T] for s in result.sequences])
    assert logprobs == pytest.approx([e.logprob for c in choices for e in c.logprobs.content])
    steps = [i for s in result.sequences for i in s.policy_steps_T[s.loss_mask_T].tolist()]
    assert steps == [c.model_extra["policy_step"] for c in choices for _ in c.model_extra["token_ids"]]
