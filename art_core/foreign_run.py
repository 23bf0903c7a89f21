"""A run directory that openpipe-art's own backend wrote. It is recognised and read, never changed.

    checkpoints/0007/adapter_config.json adapter_model.safetensors …    and no manifest

There the directory's existence is all that says that a step is there: no file has a digest, a kill may have left the
last one torn, and the optimizer's state was never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from art_core import disk
from art_core.adapter_file import read_adapter_config
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, MANIFEST
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError, ConfigError

FILES = (ADAPTER_CONFIG, ADAPTER)
"""What of a foreign step is an adapter; tokenizers, pickles and cards beside it are not read."""


def foreign_steps(run: Path) -> Sequence[int]:
    """The steps that a foreign run seems to have, rising; none where the run is one of ours, or no run.

    Args:
        run: The run's directory.

    Raises:
        StoreError: The system refuses to read it.
    """
    checkpoints = run / "checkpoints"
    with disk.disk_errors(f"read {run}"):
        if (run / "run.json").exists() or not checkpoints.is_dir():
            return []
        return sorted({int(path.name) for path in checkpoints.iterdir() if is_foreign(path)})


def foreign_step(run: Path, step: int) -> Path:
    """Where a foreign run keeps a step; of several names of one number, the one with four digits."""
    found = [path for path in (run / "checkpoints").iterdir() if is_foreign(path) and int(path.name) == step]
    return max(found, key=lambda path: (path.name == f"{step:04d}", path.name))


def foreign_made_for(run: Path, step: int) -> tuple[str, LoRAConfig]:
    """What a foreign run says that it was made for: its base model's name and the adapter's shape.

    Args:
        run: The run's directory.
        step: One of its steps.

    Raises:
        CheckpointCorruptError: The step does not say it, or not so that it can be used.
    """
    try:
        config = read_adapter_config(foreign_step(run, step) / ADAPTER_CONFIG)
    except CheckpointCorruptError as error:
        raise torn(run, step, error) from error
    modules = config.get("target_modules")
    if isinstance(modules, list) and not all(isinstance(each, str) for each in modules):
        raise torn(run, step, CheckpointCorruptError(f"{ADAPTER_CONFIG}: target_modules holds what is no name"))
    lora = LoRAConfig(config["r"], config["lora_alpha"], sorted(modules) if isinstance(modules, list) else None)
    return str(config.get("base_model_name_or_path")), lora


def torn(run: Path, step: int, error: CheckpointCorruptError) -> CheckpointCorruptError:
    """The error of a foreign step that can't be taken over, with the steps that may be.

    Args:
        run: The run's directory.
        step: Which step.
        error: What is wrong with it.
    """
    others = ", ".join(str(each) for each in foreign_steps(run) if each != step) or "none"
    return CheckpointCorruptError(
        f"step {step} of {run} can't be taken over: {error}; a kill may have torn it: name another step (there are: "
        f"{others}), as @<step> or not_after_step",
        step=step,
    )


def refuse_foreign(run: Path) -> None:
    """Refuse to train in a foreign run's directory, before anything in it is touched.

    Args:
        run: The run's directory.

    Raises:
        ConfigError: It is one; says how to go on from it.
    """
    if steps := foreign_steps(run):
        raise ConfigError(
            f"{run} holds steps of openpipe-art's own backend (newest: {steps[-1]}), which stay as they are; choose "
            f"another run_name and start it from them, with backend._experimental_fork_checkpoint(model, "
            f"from_model={run.name!r}) before it is registered, or by `art checkpoints fork`"
        )


def is_foreign(path: Path) -> bool:
    """Whether a directory is a step of a run that is not ours; what a run of ours lacks is damage."""
    return (
        path.name.isdecimal()
        and path.name.isascii()
        and path.is_dir()
        and not path.is_symlink()
        and not (path / MANIFEST).exists()
        and any((path / name).exists() for name in FILES)
    )
