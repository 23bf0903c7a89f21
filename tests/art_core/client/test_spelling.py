"""Older spellings: accepted, one DeprecationWarning each, and they mean what they meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import art
from art_core.errors import ConfigError

PEFT_ARGS = (
    "`peft_args` has been replaced by top-level `TrainableModel(lora_config=...)`; rename its keys: r -> rank, "
    "lora_alpha -> alpha, lora_dropout -> dropout, init_lora_weights -> init_weights; the others keep their names"
)


def model(**fields: Any) -> art.TrainableModel[Any]:
    return art.TrainableModel(**{"name": "agent", "project": "p", "base_model": "b", **fields})


@pytest.mark.parametrize(
    ("config", "text", "left"),
    [
        (
            {"rollout_weights_mode": "lora", "engine_args": {"max_loras": 2}},
            "rollout_weights_mode has been removed; ART always serves native LoRA adapters",
            {"engine_args": {"max_loras": 2}},
        ),
        (
            {"init_args": {"fast_inference": False, "load_in_4bit": True}},
            "init_args.fast_inference has been removed; the engine always runs as its own process",
            {"init_args": {"load_in_4bit": True}},
        ),
        ({"peft_args": {"r": 4}}, PEFT_ARGS, {}),
    ],
)
def test_one_warning_with_the_exact_text_at_the_program_s_line(config: Any, text: str, left: Any) -> None:
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    with pytest.warns(DeprecationWarning) as caught:
        made = art.TrainableModel(name="agent", project="p", base_model="b", _internal_config=given)
    assert [(str(each.message), each.filename) for each in caught] == [(text, __file__)]
    assert made._internal_config == left
    assert given == config, "what the program holds is not changed"


def test_peft_args_become_lora_config() -> None:
    old = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "init_lora_weights": True, "target_modules": ["q_proj"]}
    with pytest.warns(DeprecationWarning):
        made = model(_internal_config={"peft_args": old})
    new = {"rank": 4, "alpha": 8, "dropout": 0.0, "init_weights": True, "target_modules": ["q_proj"]}
    assert made.lora_config == new
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(lora_config=new).lora_config == new


def test_both_at_once_or_a_bad_value_are_refused() -> None:
    with pytest.raises(ConfigError, match="both lora_config and peft_args are given"):
        model(lora_config={"rank": 4}, _internal_config={"peft_args": {"r": 8}})
    with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match="LoRA rank is 0"):
        model(_internal_config={"peft_args": {"r": 0}})


def test_write_state(tmp_path: Path) -> None:
    made = model(base_path=str(tmp_path))
    with pytest.warns(DeprecationWarning) as caught:
        made.write_state({"a": 1})
    assert [(str(each.message), each.filename) for each in caught] == [
        ("write_state() is deprecated; call overwrite_state()", __file__)
    ]
    assert made.read_state() == {"a": 1}


def test_today_s_spelling_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = model(
            base_path=str(tmp_path),
            lora_config=art.LoRAConfig(rank=4),
            _internal_config=art.dev.InternalModelConfig(engine_args=art.dev.EngineArgs(max_loras=2)),
        )
        made.overwrite_state({})


def test_the_import_paths_that_programs_use() -> None:
    from art.local import LocalBackend
    from art.local.backend import LocalBackend as Same
    from art.rewards import ruler, ruler_score_group
    from art.rewards.ruler import ruler_score_group as same_ruler
    from art.utils import iterate_dataset, limit_concurrency, retry
    from art.utils.iterate_dataset import iterate_dataset as same_iterate
    from art.utils.limit_concurrency import limit_concurrency as same_limit
    from art.utils.retry import retry as same_retry

    assert LocalBackend is Same
    assert (ruler_score_group, iterate_dataset, limit_concurrency, retry) == (
        same_ruler,
        same_iterate,
        same_limit,
        same_retry,
    )
    assert callable(ruler)
    assert art.retry is retry
    assert {"rollout_weight_update_mode", "engine_args"} <= set(art.dev.InternalModelConfig.__annotations__)
    assert art.dev.TrainConfig(epsilon=0.2, epsilon_high=0.3) == {"epsilon": 0.2, "epsilon_high": 0.3}
