"""Older spellings of `_internal_config`, accepted with a DeprecationWarning each and turned into today's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from art_core.errors import ConfigError

PEFT_ARGS = (
    "`peft_args` has been replaced by top-level `TrainableModel(lora_config=...)`; rename its keys: r -> rank, "
    "lora_alpha -> alpha, lora_dropout -> dropout, init_lora_weights -> init_weights; the others keep their names"
)
ROLLOUT_WEIGHTS_MODE = "rollout_weights_mode has been removed; ART always serves native LoRA adapters"
FAST_INFERENCE = "init_args.fast_inference has been removed; the engine always runs as its own process"

_RENAMED = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "init_lora_weights": "init_weights",
}


def current_spelling(
    config: Mapping[str, Any], lora_config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """A configuration and LoRA shape without older spellings.

    Args:
        config: ``_internal_config``, as given.
        lora_config: ``lora_config``, as given.

    Returns:
        The same two in today's spelling.

    Raises:
        ConfigError: The LoRA shape is given twice.
    """
    config = dict(config)
    if "rollout_weights_mode" in config:
        del config["rollout_weights_mode"]
        _warn(ROLLOUT_WEIGHTS_MODE)
    if "fast_inference" in (config.get("init_args") or {}):
        config["init_args"] = {key: value for key, value in config["init_args"].items() if key != "fast_inference"}
        _warn(FAST_INFERENCE)
    if "peft_args" not in config:
        return config, lora_config
    given = config.pop("peft_args") or {}
    if lora_config is not None:
        raise ConfigError(f"both lora_config and peft_args are given; leave peft_args out. {PEFT_ARGS}")
    _warn(PEFT_ARGS)
    return config, {_RENAMED.get(key, key): value for key, value in given.items()}


def _warn(text: str) -> None:
    # past this function, `current_spelling` and the model's constructor, to the program's own line
    warnings.warn(text, DeprecationWarning, stacklevel=4)
