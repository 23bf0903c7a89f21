"""Unsloth itself: imported once, in the trainer's own process, before every library that it patches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from art_core.errors import ConfigError, TrainerStartError
from art_unsloth.options import Device

_VARIABLES: dict[Device, dict[str, str]] = {
    "auto": {},
    "cpu": {"UNSLOTH_FORCE_CPU": "1"},
    "cuda": {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"},
}
"""How each choice of a device is told to Unsloth, which looks while it is imported."""

_PATCHED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
"""What Unsloth's patches reach into: its limits on these are held, whatever else an environment leaves out."""


@dataclass(frozen=True)
class Unsloth:
    """The imported library."""

    model: Any
    """``FastLanguageModel``."""
    device: Device
    """``cuda`` or ``cpu``."""


def load(device: Device) -> Unsloth:
    """Import Unsloth.

    Args:
        device: What it is to run on.

    Raises:
        TrainerStartError: Its dependencies are of other versions than it allows, something that it patches has been
            imported already, or neither a GPU nor its CPU backend can serve.
        ConfigError: It has chosen a kind of device that this trainer is not made for.
    """
    if "unsloth" not in sys.modules and "transformers" in sys.modules:
        raise TrainerStartError(
            "transformers was imported before Unsloth, whose patches then come too late; name the trainer "
            "(trainer='unsloth') and let it have a process of its own"
        )
    if problems := list(misfits()):
        raise TrainerStartError(
            f"Unsloth {version('unsloth')} in {sys.executable} does not fit its libraries: {'; '.join(problems)}; "
            "install those versions there, or leave the option `python` out and run: art env create unsloth"
        )
    os.environ.update(_VARIABLES[device])
    try:
        unsloth: Any = import_module("unsloth")
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:
        raise TrainerStartError(
            f"Unsloth can't run here with device={device!r}: {error}; it needs a GPU that the torch of "
            f"{sys.executable} can use (art env create unsloth --device gpu), or a CPU and device='cpu'"
        ) from error
    kinds: dict[str, Device] = {"cpu": "cpu", "cuda": "cuda"}
    if unsloth.DEVICE_TYPE_TORCH not in kinds:
        raise ConfigError(
            f"Unsloth has chosen {unsloth.DEVICE_TYPE_TORCH!r} here; this trainer is made for CUDA and CPU: set "
            "device='cpu'"
        )
    return Unsloth(unsloth.FastLanguageModel, kinds[unsloth.DEVICE_TYPE_TORCH])


def misfits() -> Iterator[str]:
    """What is installed in a version that Unsloth refuses, one sentence each."""
    for line in requires("unsloth") or []:
        needed = Requirement(line)
        if needed.name not in _PATCHED or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        try:
            seen = version(needed.name)
        except PackageNotFoundError:
            seen = "none"
        if seen == "none" or not needed.specifier.contains(seen, prereleases=True):
            yield f"it needs {needed.name}{needed.specifier}, installed: {seen}"
