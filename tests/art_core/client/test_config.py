"""Keywords of `train` and keys of `lora_config`: mapped, ignored, refused."""

from __future__ import annotations

import warnings
from dataclasses import asdict, fields
from typing import Any

import pytest

from art_core.client.config import LocalTrainArgs, LoRAConfig, TrainConfig, TrainSFTConfig, lora_config, step_config
from art_core.client.option import TrainerArgs
from art_core.config import LoRAConfig as AdapterShape
from art_core.errors import ConfigError
from art_core.step import StepConfig

REFERENCE: dict[str, Any] = {
    "learning_rate": 5e-6, "loss_fn": "cispo", "loss_fn_config": None, "normalize_advantages": True,
    "adam_params": None, "kl_penalty_coef": 0.0, "kl_penalty_reference_step": None, "kl_ref_adapter_path": None,
    "kl_penalty_source": "current_learner", "epsilon": None, "epsilon_high": None, "advantage_balance": 0.0,
    "scale_rewards": True, "importance_sampling_level": "token",
    "max_negative_advantage_importance_sampling_weight": None, "mask_prob_ratio": False, "kimi_k2_tau": None,
    "precalculate_logprobs": False, "allow_training_without_logprobs": False, "plot_tensors": False,
    "truncated_importance_sampling": None, "scale_learning_rate_by_reward_std_dev": False,
    "logprob_calculation_chunk_size": 1024, "packed_sequence_length": None,
    "num_trajectories_learning_rate_multiplier_power": 0.0, "save_checkpoint": True, "optimizer_save_interval": 5,
    "final_training_step": None, "grad_accumulation_sequences": None, "verbose": False,
}  # fmt: skip
"""Every keyword that programs pass, at the value they know as its default."""


def test_every_known_keyword_is_accepted_at_its_default_and_gives_the_defaults() -> None:
    assert set(REFERENCE) == set(LocalTrainArgs.__annotations__)
    assert step_config(LocalTrainArgs(**REFERENCE), {}) == step_config({}, {}) == StepConfig()


@pytest.mark.parametrize(
    ("args", "changed"),
    [
        ({"learning_rate": 1e-4}, {"learning_rate": 1e-4}),
        (
            {"loss_fn": "ppo", "epsilon": 0.1, "epsilon_high": 0.3},
            {"loss_fn": "ppo", "epsilon": 0.1, "epsilon_high": 0.3},
        ),
        ({"scale_rewards": False}, {"scale_rewards": False}),
        ({"normalize_advantages": False}, {"scale_rewards": False}),
        ({"normalize_advantages": False, "scale_rewards": True}, {"scale_rewards": False}),
        ({"packed_sequence_length": 4096}, {"microbatch_tokens": 4096}),
        ({"grad_accumulation_sequences": 4}, {"update_sequences": 4}),
        ({"logprob_calculation_chunk_size": 64}, {"logprob_chunk_tokens": 64}),
        (
            {"truncated_importance_sampling": 2.0, "precalculate_logprobs": True},
            {"truncated_importance_sampling": 2.0, "precalculate_logprobs": True},
        ),
        ({"verbose": True, "save_checkpoint": False, "optimizer_save_interval": 1, "final_training_step": 9}, {}),
    ],
)
def test_what_keywords_change(args: LocalTrainArgs, changed: dict[str, Any]) -> None:
    assert asdict(step_config(args, {})) == asdict(StepConfig()) | changed


def test_the_run_s_defaults_hold_where_the_caller_says_nothing() -> None:
    defaults = {"learning_rate": 1e-3, "max_grad_norm": 1.0, "scale_rewards": False}
    assert step_config({}, defaults) == StepConfig(learning_rate=1e-3, max_grad_norm=1.0, scale_rewards=False)
    assert step_config({"learning_rate": 2e-3, "scale_rewards": True}, defaults) == StepConfig(
        learning_rate=2e-3, max_grad_norm=1.0
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"loss_fn": "dpo"}, r"^LocalBackend only supports loss_fn='cispo' or 'ppo'\.$"),
        ({"loss_fn_config": {}}, r"^LocalBackend requires loss_fn_config=None\.$"),
        ({"adam_params": {"beta1": 0.9}}, r"^LocalBackend requires adam_params=None\.$"),
        ({"learnin_rate": 1e-5}, r"unexpected keyword argument 'learnin_rate'; did you mean 'learning_rate'\?"),
        ({"learnin_rate": None}, "unexpected keyword argument 'learnin_rate'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; allowed"),
        ({"plot_tensors": True}, "plot_tensors is True; allowed: False"),
        ({"truncated_importance_sampling": 2.0}, "needs precalculate_logprobs=True"),
        ({"kl_penalty_reference_step": 1, "kl_ref_adapter_path": "x"}, "set only one"),
    ],
)
def test_what_is_refused(args: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        step_config(args, {})


OTHERWISE: dict[str, Any] = {
    "kl_penalty_coef": 0.1, "kl_penalty_reference_step": 1, "kl_ref_adapter_path": "x", "kl_penalty_source": "sample",
    "advantage_balance": 0.5, "importance_sampling_level": "sequence",
    "max_negative_advantage_importance_sampling_weight": 1.0, "mask_prob_ratio": True, "kimi_k2_tau": 0.1,
    "precalculate_logprobs": True, "allow_training_without_logprobs": True,
    "scale_learning_rate_by_reward_std_dev": True, "num_trajectories_learning_rate_multiplier_power": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("option", sorted(OTHERWISE))
def test_options_keep_their_names(option: str) -> None:
    given = {option: OTHERWISE[option]}
    assert asdict(step_config(LocalTrainArgs(**given), {})) == asdict(StepConfig()) | given  # type: ignore[typeddict-item]


def test_every_keyword_has_an_effect_or_is_named_here() -> None:
    """Those that only accept their default, and those that are the caller's or nobody's concern."""
    fixed = {"loss_fn_config", "adam_params", "plot_tensors"}
    ignored = {"save_checkpoint", "optimizer_save_interval", "final_training_step", "verbose"}
    renamed = {"packed_sequence_length", "logprob_calculation_chunk_size", "grad_accumulation_sequences"}
    own = set(asdict(StepConfig()))
    assert set(REFERENCE) - own == fixed | ignored | renamed | {"normalize_advantages"}


def test_the_run_s_defaults_are_typed_field_by_field() -> None:
    names = [field.name for field in fields(StepConfig)]
    assert list(TrainerArgs.__annotations__)[: len(names)] == names


@pytest.mark.parametrize("config", [TrainConfig, TrainSFTConfig])
def test_a_misspelt_option_of_a_config_suggests_the_nearest(config: type[TrainConfig | TrainSFTConfig]) -> None:
    with pytest.raises(
        ConfigError, match=f"{config.__name__} has no option 'learning_rat'; did you mean 'learning_rate'"
    ):
        config(learning_rat=1e-4)  # type: ignore[call-arg]


def test_the_older_config_names_keywords_of_train() -> None:
    assert set(TrainConfig.model_fields) <= set(LocalTrainArgs.__annotations__)


def test_the_adapter_s_shape() -> None:
    assert lora_config(None) == lora_config({}) == AdapterShape()
    given = LoRAConfig(rank=4, alpha=8, target_modules=["q_proj"], random_state=7)
    assert lora_config(given) == AdapterShape(rank=4, alpha=8, target_modules=["q_proj"], random_state=7)


def test_keys_at_their_default_are_accepted_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given: LoRAConfig = {
            "dropout": 0, "bias": "none", "layers_to_transform": None, "layers_pattern": None, "use_rslora": False,
            "modules_to_save": [], "init_weights": True, "loftq_config": {},
        }  # fmt: skip
        assert lora_config(given) == AdapterShape()


@pytest.mark.parametrize("key", ["use_gradient_checkpointing", "max_seq_length", "temporary_location"])
def test_harmless_keys_are_ignored_with_a_warning(key: str) -> None:
    with pytest.warns(UserWarning, match=f"'{key}'.* has no effect here"):
        assert lora_config({key: 1}) == AdapterShape()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dropout": 0.1}, r"lora_config\['dropout'\] is 0.1; allowed: 0.0"),
        ({"use_rslora": True}, "is True; allowed: False"),
        ({"modules_to_save": ["lm_head"]}, r"\['lm_head'\]; allowed: None"),
        ({"r": 8}, "lora_config has no key 'r'"),
        ({"lora_alpha": 8}, "did you mean 'alpha'"),
        ({"rank": 0}, "LoRA rank is 0"),
        ({"target_modules": []}, "target_modules is empty"),
    ],
)
def test_keys_that_would_change_the_adapter_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_config(given)


def test_every_key_is_mapped_ignored_or_refused() -> None:
    for key in LoRAConfig.__annotations__:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lora_config({key: "nonsense"})
        except (ConfigError, TypeError) as error:
            assert "has no key" not in str(error)
