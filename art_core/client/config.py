"""What users write in keywords and dicts, turned into the core's own settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from art_core import config as core
from art_core.errors import ConfigError, nearest
from art_core.step import StepConfig


class _Config(BaseModel):
    """Values out of range are pydantic's errors; an unknown name is refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid")

    def __init__(self, **values: Any) -> None:
        for key in values.keys() - type(self).model_fields.keys():
            raise ConfigError(f"{type(self).__name__} has no option {key!r}; {nearest(key, type(self).model_fields)}")
        super().__init__(**values)


class TrainConfig(_Config):
    """Options of the older `TrainableModel.train`; `backend.train` takes the same as keywords."""

    learning_rate: float = 5e-6
    kl_penalty_coef: float = 0.0
    kl_penalty_source: Literal["current_learner", "sample"] = "current_learner"
    grad_accumulation_sequences: int | None = Field(default=None, ge=1)
    optimizer_save_interval: int = Field(default=5, ge=1)
    final_training_step: int | None = Field(default=None, ge=1)


class TrainSFTConfig(_Config):
    """Options of supervised fine-tuning."""

    learning_rate: float | list[float] = 5e-5
    """AdamW step size; a list: of each batch in turn."""
    batch_size: int | Literal["auto"] = "auto"
    """Trajectories an optimizer update; ``"auto"``: 2."""
    assistant_turns: Literal["all", "last"] = "all"
    """Which assistant messages are learnt: every one, or each chat's last."""


class LocalTrainArgs(TypedDict, total=False):
    """Keywords of `LocalBackend.train`; None means the same as leaving one out. See `art_core.step.StepConfig`."""

    learning_rate: float
    """AdamW step size; default 5e-6."""
    loss_fn: Literal["cispo", "ppo"]
    loss_fn_config: None
    """Accepted as None only."""
    normalize_advantages: bool
    """False means the same as ``scale_rewards=False``."""
    adam_params: None
    """Accepted as None only: AdamW's settings are the model's ``trainer_args``."""
    kl_penalty_coef: float
    """How strongly the policy is held to a reference: the base model, unless one of the next two is set."""
    kl_penalty_reference_step: int | None
    """A stored step of this run."""
    kl_ref_adapter_path: str | None
    """Directory of an adapter in PEFT's layout."""
    kl_penalty_source: Literal["current_learner", "sample"]
    epsilon: float | None
    """Lower clip of the importance ratio."""
    epsilon_high: float | None
    """Upper clip of the importance ratio."""
    advantage_balance: float
    """Above 0 weakens negative advantages, below 0 positive ones."""
    scale_rewards: bool
    """Divide advantages by their group's standard deviation; default True."""
    importance_sampling_level: Literal["token", "sequence", "average", "geometric_average"]
    max_negative_advantage_importance_sampling_weight: float | None
    mask_prob_ratio: bool
    kimi_k2_tau: float | None
    precalculate_logprobs: bool
    """Recompute the old logprobs with the trainer's weights."""
    allow_training_without_logprobs: bool
    """Take choices without logprobs as sampled by the trainer's present weights."""
    plot_tensors: bool
    """Accepted as False only."""
    truncated_importance_sampling: float | None
    """Needs ``precalculate_logprobs=True``."""
    scale_learning_rate_by_reward_std_dev: bool
    """Looks at the steps that `model.log` has written."""
    logprob_calculation_chunk_size: int
    """Most tokens whose logits are held at once."""
    packed_sequence_length: int | None
    """Most tokens in one forward pass."""
    num_trajectories_learning_rate_multiplier_power: float
    save_checkpoint: bool
    """A checkpoint is always written; False only leaves `checkpoint_path` out of the result."""
    optimizer_save_interval: int
    """Accepted and ignored: optimizer state is part of every checkpoint."""
    final_training_step: int | None
    """Accepted and ignored."""
    grad_accumulation_sequences: int | None
    """Sequences per optimizer update; None: one update from the whole batch."""
    verbose: bool
    """Accepted and ignored: use the loggers named ``art``."""


_RENAMED = {
    "packed_sequence_length": "microbatch_tokens",
    "logprob_calculation_chunk_size": "logprob_chunk_tokens",
    "grad_accumulation_sequences": "update_sequences",
}
"""Keyword of `train` to field of `StepConfig`, where the two differ."""

_STEP_FIELDS = frozenset(field.name for field in fields(StepConfig))


def step_config(args: LocalTrainArgs, defaults: Mapping[str, Any]) -> StepConfig:
    """The step's algorithm, from what the caller of `train` wrote.

    Args:
        args: Keywords of `train`, as given.
        defaults: Fields of `StepConfig` that the run's configuration sets; `args` win.

    Raises:
        ConfigError: A keyword is unknown (the nearest is named), a value out of range, or two contradict each other.
    """
    for key in args:
        if key not in LocalTrainArgs.__annotations__:
            known = nearest(key, LocalTrainArgs.__annotations__)
            raise ConfigError(f"train() got an unexpected keyword argument {key!r}; {known}")
    given: dict[str, Any] = {key: value for key, value in args.items() if value is not None}
    if given.get("loss_fn", "cispo") not in ("cispo", "ppo"):
        raise ConfigError("LocalBackend only supports loss_fn='cispo' or 'ppo'.")
    for key in ("loss_fn_config", "adam_params"):
        if key in given:
            raise ConfigError(f"LocalBackend requires {key}=None.")
    if given.get("plot_tensors"):
        raise ConfigError("plot_tensors is True; allowed: False. Nothing is plotted here: look at result.metrics")
    if given.pop("normalize_advantages", True) is False:
        given["scale_rewards"] = False
    renamed = {_RENAMED.get(key, key): value for key, value in given.items()}
    return StepConfig(**{**defaults, **{key: value for key, value in renamed.items() if key in _STEP_FIELDS}})


class LoRAConfig(TypedDict, total=False):
    """Keys of ``TrainableModel(lora_config=...)``. Those without a word here are accepted at their default only."""

    rank: int
    """Inner dimension of the update; default 8."""
    alpha: float
    """The update is scaled by alpha / rank; default 16."""
    dropout: float
    target_modules: list[str]
    """Linear modules to adapt; default: all of the decoder layers."""
    bias: str
    layers_to_transform: list[int] | None
    layers_pattern: str | None
    use_gradient_checkpointing: str | bool
    """Ignored with a warning: how memory is saved is the trainer's choice."""
    random_state: int
    """Seed of the fresh adapter; default 3407."""
    max_seq_length: int
    """Ignored with a warning: the context is the base model's."""
    use_rslora: bool
    modules_to_save: list[str] | None
    init_weights: bool
    loftq_config: dict[str, Any] | None
    temporary_location: str
    """Ignored with a warning."""


_LORA_IGNORED = ("use_gradient_checkpointing", "max_seq_length", "temporary_location")
_LORA_ONLY: dict[str, object] = {
    "dropout": 0.0,
    "bias": "none",
    "layers_to_transform": None,
    "layers_pattern": None,
    "use_rslora": False,
    "modules_to_save": None,
    "init_weights": True,
    "loftq_config": None,
}
"""Key of `LoRAConfig` that no trainer of ours follows, to the only value it may have; empty means unset."""


def lora_config(values: Mapping[str, Any] | None) -> core.LoRAConfig:
    """The adapter's shape, from what the user wrote.

    Args:
        values: A `LoRAConfig`; None: all defaults.

    Raises:
        ConfigError: A key is unknown (the nearest is named), not supported, or its value out of range.
    """
    known: dict[str, Any] = {}
    for key, value in (values or {}).items():
        if key in _LORA_IGNORED:
            warnings.warn(f"lora_config[{key!r}] has no effect here and is ignored", stacklevel=2)
        elif key in _LORA_ONLY:
            if value != _LORA_ONLY[key] and value not in ([], {}):
                raise ConfigError(f"lora_config[{key!r}] is {value!r}; allowed: {_LORA_ONLY[key]!r}, or leave it out")
        elif key in LoRAConfig.__annotations__:
            known[key] = value
        else:
            raise ConfigError(f"lora_config has no key {key!r}; {nearest(key, LoRAConfig.__annotations__)}")
    return core.LoRAConfig(**known)
