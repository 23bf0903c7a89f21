"""Schedules, chunks of a dataset, and chats from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from art.utils.sft import (
    create_lr_schedule,
    create_sft_dataset_iterator,
    get_file_row_count,
    iterate_file,
    train_sft_from_file,
)
from art_core.client.config import TrainSFTConfig
from art_core.client.supervised import supervised_config
from art_core.errors import ConfigError, TrajectoryError
from art_core.trajectory import Trajectory


def chat(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": str(number)}, {"role": "assistant", "content": "ok"}]}


def numbers(trajectories: Iterable[Trajectory]) -> list[int]:
    return [int(str(each.messages()[0]["content"])) for each in trajectories]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n\n".join(json.dumps(chat(number)) for number in range(7)) + "\n")
    return path


def test_a_schedule_rises_and_falls() -> None:
    assert create_lr_schedule(5, 1.0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert create_lr_schedule(6, 1.0, "linear", 2, 0.1) == pytest.approx([0.55, 1.0, 1.0, 0.7, 0.4, 0.1])
    cosine = [(1 + math.cos(math.pi * step / 3)) / 2 for step in range(4)]
    assert create_lr_schedule(4, 2e-4, "cosine") == pytest.approx([2e-4 * share for share in cosine])
    assert create_lr_schedule(3, 1e-3, "constant") == [1e-3] * 3
    assert create_lr_schedule(2, 1.0, warmup_steps=4) == pytest.approx([0.25, 0.5])
    assert create_lr_schedule(1, 1.0) == [1.0]
    assert create_lr_schedule(0, 1.0) == []
    with pytest.raises(ConfigError, match="method is 'step'; allowed: 'cosine', 'linear', 'constant'"):
        create_lr_schedule(3, 1.0, "step")  # type: ignore[arg-type]


def test_chunks_share_one_schedule_and_each_epoch_has_its_order() -> None:
    trajectories = [Trajectory(messages_and_choices=chat(number)["messages"]) for number in range(7)]
    options: dict[str, Any] = {"epochs": 2, "batch_size": 2, "chunk_size": 3, "peak_lr": 1e-3, "warmup_ratio": 0.25}
    chunks = list(create_sft_dataset_iterator(trajectories, **options))
    assert [(chunk.step, chunk.epoch, chunk.epoch_step) for chunk in chunks] == [
        (0, 0, 0),
        (3, 0, 3),
        (4, 1, 0),
        (7, 1, 3),
    ]
    rates = [rate for chunk in chunks for rate in chunk.config.learning_rate]  # type: ignore[union-attr]
    assert rates == create_lr_schedule(8, 1e-3, warmup_steps=2)
    orders = [numbers(chunks[at].trajectories + chunks[at + 1].trajectories) for at in (0, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7)) and orders[0] != orders[1]
    resumed = list(create_sft_dataset_iterator(trajectories, **options, initial_step=4))
    assert [chunk.step for chunk in resumed] == [4, 7]
    with pytest.raises(ConfigError, match="chunk_size is 0"):
        list(create_sft_dataset_iterator(trajectories, chunk_size=0))
    with pytest.raises(ConfigError, match="warmup_ratio is 2; allowed: 0 to 1"):
        list(create_sft_dataset_iterator(trajectories, warmup_ratio=2))


def test_a_file_is_read_line_by_line_in_each_epoch_s_order(file: Path) -> None:
    assert get_file_row_count(file) == 7
    assert numbers(iterate_file(file, shuffle_buffer_size=1)) == list(range(7))
    shuffled = numbers(iterate_file(str(file), epochs=2, shuffle_buffer_size=3))
    assert sorted(shuffled[:7]) == sorted(shuffled[7:]) == list(range(7)) and shuffled[:7] != shuffled[7:]
    assert numbers(iterate_file(file, epochs=2, shuffle_buffer_size=3, initial_skip=5)) == shuffled[5:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is no JSON"),
        ("[]", "line 3 holds no chat"),
        ('{"messages": []}', "line 3 holds no chat"),
        ('{"messages": ["hi"]}', "line 3 holds no chat"),
    ],
)
def test_a_line_that_holds_no_chat_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(chat(0)) + "\n\n" + line + "\n")
    with pytest.raises(TrajectoryError, match=message):
        list(iterate_file(path))


def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no \.jsonl file"):
        get_file_row_count(tmp_path / "chats.csv")
    with pytest.raises(ConfigError, match="can't be read"):
        get_file_row_count(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="can't be read"):
        get_file_row_count(tmp_path / "latin.jsonl")


class Recorder:
    """Stands where a registered model does, and notes what it is to learn."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], TrainSFTConfig]] = []

    async def train_sft(
        self, trajectories: list[Trajectory], config: TrainSFTConfig, _config: Any, log_metrics: bool
    ) -> None:
        self.calls.append((numbers(trajectories), config))


async def test_a_file_is_learnt_in_steps_of_its_schedule(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("art_core.client.chat_file.BATCHES_PER_STEP", 2)
    whole, resumed = Recorder(), Recorder()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 2, "shuffle_buffer_size": 1, "assistant_turns": "last"}
    await train_sft_from_file(whole, file, **options)  # type: ignore[arg-type]
    assert [seen for seen, _ in whole.calls] == [[0, 1, 2, 3], [4, 5, 6, 0], [1, 2, 3, 4], [5, 6]]
    rates = [rate for _, config in whole.calls for rate in config.learning_rate]  # type: ignore[union-attr]
    assert rates == create_lr_schedule(7, 2e-4, warmup_steps=0)
    assert {config.assistant_turns for _, config in whole.calls} == {"last"}
    await train_sft_from_file(resumed, file, **options, initial_step=4, final_step=6)  # type: ignore[arg-type]
    ((seen, config),) = resumed.calls
    assert (seen, config.learning_rate) == ([1, 2, 3, 4], rates[4:6])
    with pytest.raises(ConfigError, match="batchsize"):
        await train_sft_from_file(whole, file, batchsize=2)  # type: ignore[call-arg,arg-type]


def test_options_reach_the_step_and_others_are_refused() -> None:
    given = TrainSFTConfig(learning_rate=[1e-4, 1e-5], batch_size=3, assistant_turns="last")
    defaults = {"microbatch_tokens": 512, "weight_decay": 0.5, "learning_rate": 1.0, "epsilon": 0.2}
    made = supervised_config(given, {"max_grad_norm": 0.5}, defaults, {"thinking": False})
    assert (made.learning_rate, made.batch_size, made.assistant_turns) == ([1e-4, 1e-5], 3, "last")
    assert made.template_variables == {"thinking": False}
    assert (made.step.microbatch_tokens, made.step.weight_decay, made.step.max_grad_norm) == (512, 0.0, 0.5)
    assert supervised_config(None, None, {}, {}).batch_size == 2
    with pytest.raises(ConfigError, match="_config has no option 'weight_decoy'"):
        supervised_config(given, {"weight_decoy": 0.5}, {}, {})
    with pytest.raises(ConfigError, match="batch_size is -1"):
        supervised_config(TrainSFTConfig(batch_size=-1), None, {}, {})
