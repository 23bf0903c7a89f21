"""`_internal_config`: the texts that users know, and keys that are unknown, gone or not there yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from art_core.client.dev import (
    InternalModelConfig,
    PeftArgs,
    chat_template,
    is_dedicated_mode,
    merged_config,
    validate_dedicated_config,
    validate_internal_config,
)
from art_core.errors import CapabilityError, ConfigError

TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"trainer_gpu_ids": [0]}, "trainer_gpu_ids and inference_gpu_ids must both be set or both unset"),
    ({"inference_gpu_ids": [0]}, "trainer_gpu_ids and inference_gpu_ids must both be set or both unset"),
    (
        {"trainer_gpu_ids": [0, 1], "inference_gpu_ids": [1]},
        "trainer_gpu_ids and inference_gpu_ids must not overlap",
    ),
    ({"trainer_gpu_ids": [], "inference_gpu_ids": [1]}, "trainer_gpu_ids must be non-empty"),
    ({"trainer_gpu_ids": [0], "inference_gpu_ids": []}, "inference_gpu_ids must be non-empty"),
    (
        {"trainer_gpu_ids": [0], "inference_gpu_ids": [1, 2]},
        "Multi-GPU inference requires engine_args.tensor_parallel_size to match len(inference_gpu_ids)",
    ),
    (
        {"trainer_gpu_ids": [0], "inference_gpu_ids": [1], "engine_args": {"enable_sleep_mode": True}},
        "enable_sleep_mode is incompatible with dedicated mode "
        "(shared-GPU mode uses runtime sleep/wake; dedicated mode does not)",
    ),
    (
        {"engine_args": {"enable_sleep_mode": False}},
        "Shared-GPU mode requires engine_args.enable_sleep_mode=True for the external vLLM runtime",
    ),
    ({"vllm_runtime": {"mode": "external"}}, "vllm_runtime.server_url is required for external mode"),
    ({"vllm_runtime": "external"}, "vllm_runtime must be a mapping"),
    (
        {"rollout_weight_update_mode": "now"},
        "rollout_weight_update_mode must be either 'step_lora' or 'in_flight_lora'",
    ),
    ({"vllm_runtime": {"mode": "remote"}}, "vllm_runtime.mode must be either 'managed' or 'external'"),
]
"""A configuration of GPUs that can't work, and the text that users know."""


@pytest.mark.parametrize(("config", "message"), TEXTS)
def test_the_exact_texts(config: dict[str, Any], message: str) -> None:
    for check in (validate_dedicated_config, validate_internal_config):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check(config)


@pytest.mark.parametrize(
    ("config", "dedicated"),
    [
        ({}, False),
        ({"engine_args": {"enable_sleep_mode": True, "max_loras": 4}}, False),
        ({"trainer_gpu_ids": [0], "inference_gpu_ids": [1]}, True),
        ({"trainer_gpu_ids": [0, 1], "inference_gpu_ids": [2]}, True),
        (
            {"trainer_gpu_ids": [0], "inference_gpu_ids": [1, 2], "engine_args": {"tensor_parallel_size": 2}},
            True,
        ),
        ({"vllm_runtime": {"mode": "managed"}, "rollout_weight_update_mode": "step_lora"}, False),
        ({"chat_template": "{{ messages }}", "chat_template_kwargs": {"a": [1, {"b": None}]}}, False),
        ({"chat_template_path": __file__, "chat_template_content_format": "auto"}, False),
        ({"chat_template_tool_schema_format": "vllm_openai"}, False),
    ],
)
def test_what_is_accepted(config: InternalModelConfig, dedicated: bool) -> None:
    validate_internal_config(config)
    assert is_dedicated_mode(config) is dedicated


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"engine_arg": {}}, "_internal_config has no key 'engine_arg'; did you mean 'engine_args'"),
    ],
)
def test_unknown_keys(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_internal_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {"rollout_weight_update_mode": "in_flight_lora"},
        {"chat_template_content_format": "openai"},
        {"tinker_args": {"renderer_name": "x"}},
        {"megatron_model_initialization": "random"},
    ],
)
def test_what_is_not_there_yet_is_refused_and_not_ignored(config: dict[str, Any]) -> None:
    with pytest.raises(CapabilityError, match="is not implemented yet; leave"):
        validate_internal_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": "a", "chat_template_path": __file__}, "'chat_template' and 'chat_template_path'; give one"),
        ({"chat_template_path": "/no/such.jinja"}, "'/no/such.jinja', which can't be read"),
        ({"chat_template_kwargs": {"now": object()}}, "['chat_template_kwargs'] is no JSON"),
        ({"chat_template_kwargs": {"x": float("nan")}}, "['chat_template_kwargs'] is no JSON"),
        ({"chat_template_kwargs": {1: 2}}, "['chat_template_kwargs'] is {1: 2}; allowed: a dict of names"),
        ({"chat_template_kwargs": None}, "['chat_template_kwargs'] is None; allowed"),
        ({"chat_template_tool_schema_format": "hf"}, "is 'hf'; allowed: 'default', 'vllm_openai'"),
    ],
)
def test_what_is_said_of_a_chat_template(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_internal_config(config)


def test_a_chat_template_comes_as_text_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ é }}\n", "utf-8")
    assert chat_template({}) is None
    assert chat_template({"chat_template": "x"}) == "x"
    assert chat_template({"chat_template_path": str(tmp_path / "chat.jinja")}) == "{{ é }}\n"


def test_peft_args_says_what_to_write() -> None:
    with pytest.raises(ValueError, match="r -> rank, lora_alpha -> alpha"):
        PeftArgs(r=8)


def test_what_register_is_given_comes_on_top() -> None:
    config = InternalModelConfig(engine_args={"max_loras": 2, "seed": 1}, trainer_gpu_ids=[0], inference_gpu_ids=[1])
    merged = merged_config(config, {"engine_args": {"max_loras": 3}, "log_file": "x"})
    assert merged == {**config, "engine_args": {"max_loras": 3, "seed": 1}}
    assert config["engine_args"]["max_loras"] == 2
    assert merged_config(None, None) == {}
