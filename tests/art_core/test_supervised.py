"""Chats to a batch, without a tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from art_core.errors import ConfigError, TrajectoryError
from art_core.message import arrays_of, encoded_of
from art_core.supervised import (
    EncodedChat,
    SupervisedConfig,
    chats_of,
    make_supervised_batch,
    supervised_step_config,
)
from art_core.trajectory import Trajectory

ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}


def trajectory(*messages: dict[str, str], more: tuple[dict[str, str], ...] = ()) -> Trajectory:
    further = [{"messages_and_choices": list(more)}] if more else []
    return Trajectory(messages_and_choices=list(messages), additional_histories=further)  # type: ignore[arg-type]


def sequence(chat_index: int, length: int, trained: int = 2) -> EncodedChat:
    return EncodedChat(chat_index, np.arange(length, dtype=np.int32), np.arange(length) >= length - trained)


def test_every_history_is_a_chat_of_its_trajectory() -> None:
    chats = chats_of([trajectory(ASKED, SAID), trajectory(ASKED, SAID, more=(ASKED, SAID))])
    assert [(chat.name, chat.trajectory_index) for chat in chats] == [
        ("trajectory 0", 0),
        ("trajectory 1", 1),
        ("trajectory 1, history 1", 1),
    ]


@pytest.mark.parametrize(
    ("trajectories", "message"),
    [
        ([], "there is no trajectory"),
        ([trajectory(ASKED, SAID), trajectory(ASKED)], "trajectory 1 has no assistant message .* roles: user"),
        ([trajectory(SAID, ASKED)], "trajectory 0 has no assistant message that answers"),
    ],
)
def test_what_can_t_be_learnt_is_refused_by_name(trajectories: list[Trajectory], message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        chats_of(trajectories)


def test_a_trained_token_has_an_advantage_of_one_and_no_policy() -> None:
    chats = chats_of([trajectory(ASKED, SAID)] * 2)
    batch, metrics = make_supervised_batch(chats, [sequence(0, 6), sequence(1, 4, trained=1)], 8)
    assert batch.loss_tokens == 3 == batch.tokens_without_logprob
    np.testing.assert_array_equal(batch.advantages_BT, batch.loss_mask_BT)
    assert set(batch.policy_steps_BT.ravel().tolist()) == {-1}
    assert batch.group_ids_B.tolist() == batch.trajectory_ids_B.tolist() == [0, 1]
    assert metrics["data/step_history_splits"] == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (sequence(1, 9), "trajectory 1 has 9 tokens; the base model's context is 8"),
        (sequence(1, 6, trained=0), "trajectory 1 gives no token to learn"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused_by_name(made: EncodedChat, message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        make_supervised_batch(chats_of([trajectory(ASKED, SAID)] * 2), [sequence(0, 6), made], 8)


def test_each_batch_of_trajectories_has_its_learning_rate() -> None:
    chats = chats_of([trajectory(ASKED, SAID)] * 5)
    batch, _ = make_supervised_batch(chats, [sequence(index, 4) for index in range(5)], 8)
    config = supervised_step_config(SupervisedConfig(learning_rate=[0.3, 0.2, 0.1], batch_size=2), batch)
    assert (config.update_sequences, config.update_learning_rates) == (2, (0.3, 0.2, 0.1))
    assert (config.loss_fn, config.weight_decay, config.max_grad_norm) == ("cross_entropy", 0.0, 1.0)
    with pytest.raises(ConfigError, match="learning_rate has 2 values; 5 trajectories at batch_size 2 are 3 batches"):
        supervised_step_config(SupervisedConfig(learning_rate=[0.3, 0.2], batch_size=2), batch)


def test_a_split_chat_s_further_sequences_are_learnt_at_its_batch_s_rate() -> None:
    chats = chats_of([trajectory(ASKED, SAID)] * 4)
    encoded = [sequence(index, 4) for index in (0, 0, 0, 1, 2, 3)]
    batch, metrics = make_supervised_batch(chats, encoded, 8)
    config = supervised_step_config(SupervisedConfig(learning_rate=[0.2, 0.1], batch_size=2), batch)
    assert config.update_learning_rates == (0.2, 0.2, 0.1)
    assert metrics["data/step_history_splits"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"assistant_turns": "first"}, "assistant_turns is 'first'; allowed: 'all', 'last'"),
        ({"learning_rate": -1.0}, "update_learning_rates is -1.0"),
        ({"learning_rate": [1e-3, float("nan")]}, "update_learning_rates is nan"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SupervisedConfig(**options)  # type: ignore[arg-type]


def test_sequences_cross_to_a_worker_unchanged() -> None:
    given = [sequence(0, 6), sequence(0, 3, trained=1), sequence(2, 4)]
    read = encoded_of(arrays_of(given))
    for ours, theirs in zip(given, read, strict=True):
        assert theirs.chat_index == ours.chat_index
        np.testing.assert_array_equal(theirs.tokens_T, ours.tokens_T)
        np.testing.assert_array_equal(theirs.trained_T, ours.trained_T)
