"""How a step is to be made, checked before it is; and the probe, which survives the disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from art_core.errors import CheckpointCorruptError, ConfigError
from art_core.step import Probe, StepConfig


def probe(*lengths: int, seed: int = 0) -> Probe:
    draw = np.random.default_rng(seed)
    return Probe(
        tokens=tuple(draw.integers(0, 50_000, n).astype(np.int32) for n in lengths),
        scored=tuple(draw.random(n) < 0.5 for n in lengths),
        before=tuple(draw.normal(size=n).astype(np.float32) for n in lengths),
        after=tuple(draw.normal(size=n).astype(np.float32) for n in lengths),
    )


def same(one: Probe, other: Probe) -> bool:
    ours, theirs = one.arrays(), other.arrays()
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and np.array_equal(ours[k], theirs[k]) for k in ours
    )


def test_the_defaults_are_within_their_own_limits() -> None:
    assert StepConfig() == StepConfig(learning_rate=5e-6, loss_fn="cispo", max_grad_norm=0.1, weight_decay=0.1)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ({}, (0.0, 5.0)),
        ({"loss_fn": "ppo"}, (0.8, 1.2)),
        ({"loss_fn": "ppo", "epsilon": 0.1}, (0.9, 1.1)),
        ({"loss_fn": "ppo", "epsilon_high": 0.28}, (0.8, 1.28)),
        ({"epsilon": 0.3, "epsilon_high": 2.0}, (0.7, 3.0)),
    ],
)
def test_the_clip_range_of_each_loss(values: dict[str, Any], limits: tuple[float, float]) -> None:
    assert StepConfig(**values).ratio_limits == pytest.approx(limits)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss_fn": "dpo"}, ["'dpo'", "'cispo' or 'ppo'"]),
        ({"learning_rate": -1e-6}, ["learning_rate", "-1e-06", "0 to 1"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "inf"]),
        ({"epsilon": 1.5}, ["epsilon", "1.5", "0 to 1"]),
        ({"epsilon_high": -0.1}, ["epsilon_high", "-0.1"]),
        ({"max_grad_norm": 0.0}, ["max_grad_norm", "0.0"]),
        ({"adam_beta1": 1.0}, ["adam_beta1", "1.0"]),
        ({"microbatch_tokens": 0}, ["microbatch_tokens", "0", "whole numbers, 1 to"]),
        ({"microbatch_tokens": 2048.5}, ["microbatch_tokens", "2048.5", "whole numbers"]),
        ({"logprob_chunk_tokens": 0}, ["logprob_chunk_tokens", "0"]),
        ({"update_sequences": 0}, ["update_sequences", "0"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'", "0 to 1"]),
        ({"learning_rate": True}, ["learning_rate", "True"]),
        ({"importance_sampling_level": "word"}, ["importance_sampling_level", "'word'", "'geometric_average'"]),
        ({"kl_penalty_source": "engine"}, ["kl_penalty_source", "'engine'", "'current_learner', 'sample'"]),
        ({"kl_penalty_coef": -0.1}, ["kl_penalty_coef", "-0.1", "0 to"]),
        ({"kl_penalty_reference_step": -1}, ["kl_penalty_reference_step", "-1", "0 to"]),
        ({"advantage_balance": 1.1}, ["advantage_balance", "1.1", "-1 to 1"]),
        ({"kimi_k2_tau": float("nan")}, ["kimi_k2_tau", "nan"]),
        ({"max_negative_advantage_importance_sampling_weight": 0.0}, ["max_negative_advantage", "0.0"]),
        ({"truncated_importance_sampling": 0.0, "precalculate_logprobs": True}, ["truncated_importance", "0.0"]),
        ({"mask_prob_ratio": "yes"}, ["mask_prob_ratio", "'yes'", "True, False"]),
        ({"truncated_importance_sampling": 2.0}, ["needs precalculate_logprobs=True"]),
        (
            {"kl_penalty_reference_step": 3, "kl_ref_adapter_path": "/a"},
            ["kl_penalty_reference_step is 3", "kl_ref_adapter_path is '/a'", "only one"],
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        StepConfig(**values)
    assert [word for word in words if word not in str(raised.value)] == []


def test_numbers_of_other_libraries_become_python_s_own() -> None:
    """The config crosses a process boundary as JSON."""
    config = StepConfig(learning_rate=np.float32(0.5), microbatch_tokens=np.int64(64), kimi_k2_tau=1)
    assert [type(value) for value in (config.learning_rate, config.microbatch_tokens, config.kimi_k2_tau)] == [
        float,
        int,
        float,
    ]
    assert (config.learning_rate, config.microbatch_tokens) == (0.5, 64)


def test_a_learning_rate_of_nothing_is_allowed() -> None:
    assert StepConfig(learning_rate=0.0).learning_rate == 0.0


@given(st.lists(st.integers(min_value=1, max_value=40), max_size=2), st.integers(0, 1000))
def test_a_probe_survives_being_flattened(lengths: list[int], seed: int) -> None:
    one = probe(*lengths, seed=seed)
    assert same(one, Probe.from_arrays(one.arrays()))


def test_a_probe_of_views_survives_the_disk(tmp_path: Path) -> None:
    """safetensors writes memory as it lies: every second token of a view would come back as every first."""
    one = probe(12, 30)
    views = Probe(*([array[::2] for array in column] for column in (one.tokens, one.scored, one.before, one.after)))
    views.write(tmp_path / "probe.safetensors")
    back = Probe.read(tmp_path / "probe.safetensors")
    for column, seen in ((views.tokens, back.tokens), (views.scored, back.scored), (views.after, back.after)):
        for expected, found in zip(column, seen, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_probe_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    one = probe(12, 30)
    one.write(tmp_path / "probe.safetensors")
    read = Probe.read(tmp_path / "probe.safetensors")
    assert same(one, read)
    assert [f.name for f in dataclasses.fields(read)] == ["tokens", "scored", "before", "after"]


def test_a_file_that_is_no_probe_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "probe.safetensors"
    probe(5).write(broken)
    whole = broken.read_bytes()
    for content in (b"", b"not safetensors", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(CheckpointCorruptError, match=r"probe\.safetensors is no probe"):
            Probe.read(broken)


def test_a_probe_without_one_of_its_arrays_is_refused(tmp_path: Path) -> None:
    arrays = probe(5, 6).arrays()
    del arrays["after.1"]
    save_file(arrays, tmp_path / "probe.safetensors")
    with pytest.raises(CheckpointCorruptError, match=r"after\.1"):
        Probe.read(tmp_path / "probe.safetensors")
