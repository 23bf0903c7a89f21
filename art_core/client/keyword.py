"""Keywords of the two model classes, and their check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Required, TypedDict

from pydantic import BaseModel
from typing_extensions import TypeVar

from art_core.client.config import LoRAConfig
from art_core.client.dev import InternalModelConfig
from art_core.errors import ConfigError, nearest

ConfigT = TypeVar("ConfigT", bound=BaseModel | None, default=None)
"""Type of the program's own `config`."""
StateT = TypeVar("StateT", bound=dict[str, Any], default=Any)
"""Accepted, so that ``Model[Config, State]`` can be written; states are plain dicts."""


class ModelArgs(TypedDict, Generic[ConfigT], total=False):
    """Keywords of `Model`."""

    name: Required[str]
    project: Required[str]
    run_name: str | None
    entity: str | None
    id: str | None
    run_id: str | None
    config: ConfigT
    trainable: bool
    inference_api_key: str | None
    inference_base_url: str | None
    inference_model_name: str | None
    base_path: str
    report_metrics: list[str] | None


class TrainableModelArgs(TypedDict, Generic[ConfigT], total=False):
    """Keywords of `TrainableModel`."""

    name: Required[str]
    project: Required[str]
    base_model: Required[str]
    run_name: str | None
    entity: str | None
    id: str | None
    run_id: str | None
    config: ConfigT
    lora_config: LoRAConfig | None
    base_path: str
    report_metrics: list[str] | None
    _internal_config: InternalModelConfig | None


def check_keywords(owner: str, given: Iterable[str], known: Iterable[str], required: Iterable[str]) -> None:
    """Refuse unknown and missing keywords.

    Args:
        owner: The class, for the message.
        given: Keywords that were given.
        known: Keywords that are allowed.
        required: Those that may not be left out.

    Raises:
        ConfigError: One is unknown (the nearest is named) or missing.
    """
    seen, allowed = set(given), set(known)
    for key in sorted(seen - allowed):
        raise ConfigError(f"{owner}() got an unexpected keyword argument {key!r}; {nearest(key, allowed)}")
    for key in required:
        if key not in seen:
            raise ConfigError(f"{owner}() needs {key}=...; needed: {', '.join(required)}")
