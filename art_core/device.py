"""What this machine has: processors, memory, GPUs. Found without importing any training library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from art_core.config import Timeouts

_DRIVER = Path("/proc/driver/nvidia/gpus")
_NODE = Path("/dev/nvidia0")
_CGROUP = Path("/sys/fs/cgroup")
_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    memory_bytes: int | None
    """None where the driver does not say."""
    driver: str | None
    """The driver's version; None where it does not say."""


@dataclass(frozen=True)
class Machine:
    """What programs on this machine may use."""

    system: str
    """Operating system, its version and the processor's architecture."""
    cores: int
    """Processor cores that this process may run on."""
    memory_bytes: int
    """Memory that this process may use: the machine's, or its container's limit."""
    gpus: Sequence[Gpu]
    mps: bool
    """Whether the GPU of an Apple processor is there."""
    gpu_problem: str | None
    """Why a GPU that seems to be there can't be asked."""


def machine(timeout_s: float = Timeouts.device_query_s) -> Machine:
    """Look at this machine.

    Args:
        timeout_s: How long the GPU driver may take to answer, seconds.
    """
    found, problem = gpus(timeout_s)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        gpus=found,
        mps=sys.platform == "darwin" and platform.machine() == "arm64",
        gpu_problem=problem,
    )


def gpus(timeout_s: float = Timeouts.device_query_s) -> tuple[list[Gpu], str | None]:
    """The CUDA GPUs of this machine, whatever `CUDA_VISIBLE_DEVICES` says.

    Args:
        timeout_s: How long the driver may take to answer, seconds.

    Returns:
        The GPUs, and why the driver could not be asked where it is there and does not answer.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return _gpus_of_the_driver(), None
    try:
        done = subprocess.run([command, *_QUERY], capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _gpus_of_the_driver(), f"nvidia-smi does not answer: {error}; look at the driver (dmesg)"
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    found = [Gpu(name, _mebibytes(memory), driver) for name, memory, driver in (row for row in rows if len(row) == 3)]
    if done.returncode and not found:
        said = " ".join((done.stdout or done.stderr).split())
        return _gpus_of_the_driver(), f"nvidia-smi ended with {done.returncode}: {said}; look at the driver (dmesg)"
    return found, None


def driver_is_loaded() -> bool:
    """Whether a CUDA driver shows a GPU. A look at files: no command is run, so it says nothing of the GPU's health."""
    return _NODE.exists() or bool(_gpus_of_the_driver())


def _gpus_of_the_driver() -> list[Gpu]:
    """What the kernel's driver lists: containers may lack the command."""
    found = []
    for path in sorted(_DRIVER.glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        found.append(Gpu(model[1].strip() if model else path.parent.name, None, None))
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdigit() else None


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP / "memory.max"
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdigit() else physical
