"""Around the trainer's step: what its options need of the run, and what it then says of the engine."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_core.advantage import deviation_trend
from art_core.backend import Backend
from art_core.batch import TrainBatch, make_batch
from art_core.capability import Capability
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, verify
from art_core.errors import CheckpointNotFoundError, ConfigError, StaleWeightsError
from art_core.proof import another_base, disagreement
from art_core.run import RunDirectory
from art_core.step import StepConfig, StepResult
from art_core.supervised import (
    EncodeRequest,
    SupervisedConfig,
    chats_of,
    make_supervised_batch,
    supervised_step_config,
)
from art_core.tokenization import TokenizationLimits
from art_core.trajectory import Trajectory, TrajectoryGroup

_log = logging.getLogger("art.loop")

Prepared = tuple[TrainBatch, dict[str, float], StepConfig]
"""A step's batch, what is known of it, and how to learn from it."""
_DEVIATION = "train/reward_std_dev"


async def prepare(backend: Backend, groups: Sequence[TrajectoryGroup], config: StepConfig, held_step: int) -> Prepared:
    """What the trainer is handed: the batch, and a config that needs nothing more of the run.

    Args:
        backend: Whose run.
        groups: What the agent did.
        config: As the user gave it.
        held_step: The newest published step, whose weights the trainer holds.

    Returns:
        The batch, its metrics, and the config: its reference step as a directory, its learning rate as it is to be.

    Raises:
        DataError: The groups can't be trained on.
        CheckpointNotFoundError: The reference step is not stored on this machine.
        CheckpointCorruptError: Its adapter differs from its manifest.
        ConfigError: The reference adapter's directory is not there.
    """
    config = await _with_reference(backend, config)
    limits = TokenizationLimits(
        backend.model.vocab_size,
        backend.model.context_tokens,
        held_step,
        require_logprobs=not config.allow_training_without_logprobs,
    )
    weighing = (config.scale_rewards, config.advantage_balance)
    batch, metrics = await asyncio.to_thread(make_batch, groups, limits, *weighing)
    deviation = metrics["train/reward_std_dev"]
    return batch, metrics, _with_learning_rate(backend.spec.run, config, held_step + 1, deviation)


async def prepare_supervised(
    backend: Backend, trajectories: Sequence[Trajectory], config: SupervisedConfig
) -> Prepared:
    """What the trainer is handed to learn what the assistant said.

    Args:
        backend: Whose trainer turns the chats into tokens.
        trajectories: What to learn from.
        config: As the user gave it.

    Returns:
        The batch, its metrics, and the trainer's config.

    Raises:
        CapabilityError: The trainer has no tokenizer.
        ConfigError: There are more or fewer learning rates than batches.
        DataError: A trajectory can't be learnt from; nothing has happened.
    """
    parts = backend.parts
    parts.trainer_capabilities.require(Capability.SUPERVISED, f"trainer {parts.trainer_name!r}")
    chats = chats_of(trajectories)
    config.rates(len(trajectories))
    encoded = await backend.trainer.encode(EncodeRequest(chats, config.assistant_turns, config.template_variables))
    batch, metrics = make_supervised_batch(chats, encoded, backend.model.context_tokens)
    return batch, metrics, supervised_step_config(config, batch)


async def _with_reference(backend: Backend, config: StepConfig) -> StepConfig:
    if config.kl_penalty_coef == 0:
        return config
    if (step := config.kl_penalty_reference_step) is not None:
        directory = await _stored(backend, step)
        return replace(config, kl_penalty_reference_step=None, kl_ref_adapter_path=str(directory))
    if config.kl_ref_adapter_path is None:
        return config
    return replace(config, kl_ref_adapter_path=_existing(config.kl_ref_adapter_path))


def _existing(path: str) -> str:
    directory = Path(path).absolute()  # the trainer's process may stand elsewhere
    if not directory.is_dir():
        raise ConfigError(
            f"kl_ref_adapter_path is {path!r}, which is no directory; "
            f"give one that holds {ADAPTER_CONFIG} and {ADAPTER}"
        )
    return str(directory)


async def _stored(backend: Backend, step: int) -> Path:
    stored = {each.step: each for each in await backend.store.list()}
    if step not in stored:
        raise CheckpointNotFoundError(
            f"kl_penalty_reference_step is {step}, which is not stored here; stored: {', '.join(map(str, stored))}"
        )
    directory = stored[step].directory
    await asyncio.to_thread(verify, directory, stored[step].manifest, (ADAPTER, ADAPTER_CONFIG))
    return directory


def _with_learning_rate(run: RunDirectory, config: StepConfig, step: int, deviation: float) -> StepConfig:
    if not config.scale_learning_rate_by_reward_std_dev:
        return config
    logged = [(line["step"], line[_DEVIATION]) for line in run.history() if _is_number(line.get(_DEVIATION))]
    factor = deviation_trend([*(each for each in logged if each[0] < step), (step, deviation)])
    return replace(config, learning_rate=min(1.0, config.learning_rate * factor))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def judge_agreement(backend: Backend, batch: TrainBatch, result: StepResult, held_step: int) -> None:
    """Say once a backend where engine and trainer compute different functions; refuse it where it shows another base.

    Args:
        backend: Whose engine and trainer.
        batch: What was trained on.
        result: ``offpolicy/engine_logprob_gap`` on the batch's newest policy, where the trainer measures it.
        held_step: Whose weights the trainer held: a batch without tokens of it says nothing.

    Raises:
        StaleWeightsError: Nobody could compare the base model's files, and these are others.
    """
    gap = result.metrics.get("offpolicy/engine_logprob_gap")
    if gap is None or int(batch.policy_steps_BT.max()) != held_step:
        return
    dtypes = backend.model.dtype, backend.trainer_info.model.dtype
    if (told := disagreement(gap, *dtypes)) is None:
        return
    if not backend.model.files_seen and another_base(gap, *dtypes):
        raise StaleWeightsError(
            f"engine {backend.parts.engine_name!r} serves another base model than {backend.model.identity.name!r} is "
            f"here: with the same adapter the logprobs of what it sampled differ by {gap:.3g} nats on average from the "
            f"trainer's, which neither rounding nor quantising explains; start it with the same files. The step was "
            f"not stored, and step {held_step} goes on serving"
        )
    if not backend.position.disagreed:
        backend.position.disagreed = True
        _log.warning("run %r: %s", backend.spec.run.name, told)
