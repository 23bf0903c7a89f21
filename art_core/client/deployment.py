"""Bring one checkpoint to where it is served elsewhere: `deploy_model`, over the publishers that are installed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from art_core.capability import Capabilities
from art_core.checkpoint import StoredCheckpoint, read_manifest
from art_core.client.model import Model
from art_core.config import Environment
from art_core.errors import CheckpointNotFoundError, ConfigError
from art_core.part import PublisherPart, require_contract
from art_core.plugins import Plugins
from art_core.protocols.publisher import Publisher
from art_core.run import RunDirectory, run_path
from art_core.selection import select

if TYPE_CHECKING:
    from art_core.protocols.engine import InferenceEngine


class DeploymentConfig(BaseModel):
    """Options of the provider's publisher, by name."""

    model_config = ConfigDict(extra="allow")


WandbDeploymentConfig = TogetherDeploymentConfig = DeploymentConfig
"""What programs call it; which options there are, the provider's publisher says."""


@dataclass(frozen=True)
class DeploymentResult:
    """Where a deployed step answers."""

    inference_model_name: str
    """What to send as ``model``."""
    inference_base_url: str | None = None
    """OpenAI-compatible address; None: the provider's own."""


async def deploy_model(
    model: Model[Any],
    checkpoint_path: str | Path,
    step: int,
    provider: str,
    config: DeploymentConfig | Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> DeploymentResult:
    """Bring a checkpoint to a provider that serves it.

    Args:
        model: Whose checkpoint it is: the provider knows it by the model's project and run.
        checkpoint_path: Its directory, as ``result.checkpoint_path`` and `_experimental_pull_model_checkpoint` give it.
        step: Its step.
        provider: Name of an installed publisher that brings steps elsewhere.
        config: That publisher's options.
        verbose: Ignored.

    Raises:
        ConfigError: The publisher serves here, an option is unknown, or the checkpoint is of another run or step.
        PluginError: There is no such publisher, or it can't be used.
        CheckpointError: The checkpoint is not there, or damaged.
        PublishError: The provider refused it.
    """
    chosen = select(Plugins(), "publisher", provider, Environment.read())
    part = cast(PublisherPart, chosen.part)
    if part.serves:
        raise ConfigError(f"publisher {provider!r} serves on an engine of yours; name one that brings steps elsewhere")
    given = config.model_dump() if isinstance(config, DeploymentConfig) else dict(config or {})
    # such a publisher takes no engine; see its contract
    made = part.create(part.options.parse(given), cast("InferenceEngine", None), Capabilities())
    require_contract(made, Publisher, f"what publisher {provider!r} creates")
    with tempfile.TemporaryDirectory(prefix="art-deploy-") as root:
        stored = await asyncio.to_thread(_in_place, Path(checkpoint_path), model, step, Path(root))
        policy = await made.publish(f"{model.name}@{step}", stored)
    return DeploymentResult(policy.name, policy.base_url)


def _in_place(directory: Path, model: Model[Any], step: int, root: Path) -> StoredCheckpoint:
    """The checkpoint where a run of that project keeps it: a publisher reads project and run off its path."""
    if not directory.is_dir():
        raise CheckpointNotFoundError(f"{directory} is no checkpoint's directory; pull or train the step first")
    manifest = read_manifest(directory)
    if (manifest.run, manifest.step) != (model.run_name, step):
        raise ConfigError(
            f"{directory} holds step {manifest.step} of run {manifest.run!r}; step {step} of {model.run_name!r} was "
            f"asked for"
        )
    target = RunDirectory(run_path(root, model.project, model.run_name)).step_directory(step)
    shutil.copytree(directory, target, symlinks=True)
    return StoredCheckpoint(target, manifest)
