"""Finding processors, memory and GPUs.

The driver's command is a shell script here: what it proves is how answers are read, not that a real driver gives them.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from art_core import device
from art_core.device import Gpu, gpus, machine


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernel's driver would list its GPUs; the path of commands holds nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "gpus")
    (tmp_path / "bin").mkdir()
    return tmp_path / "gpus"


def command(driver: Path, text: str) -> None:
    path = driver.parent / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_machine_without_gpu(driver: Path) -> None:
    assert gpus() == ([], None)


def test_what_the_drivers_command_says(driver: Path) -> None:
    command(driver, 'echo "NVIDIA H100 80GB HBM3, 81559, 570.86.15"; echo "GRID, [N/A], 570.86.15"')
    assert gpus() == ([Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, "570.86.15"), Gpu("GRID", None, "570.86.15")], None)


def test_a_driver_that_fails_is_a_problem_and_the_kernels_list_is_read(driver: Path) -> None:
    (driver / "0000:01:00.0").mkdir(parents=True)
    (driver / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA A10\nIRQ:   27\n")
    assert gpus() == ([Gpu("NVIDIA A10", None, None)], None)
    command(driver, 'echo "couldn\'t communicate with the NVIDIA driver"; exit 9')
    found, problem = gpus()
    assert found == [Gpu("NVIDIA A10", None, None)]
    assert problem is not None and "ended with 9: couldn't communicate" in problem


def test_a_driver_that_hangs_is_not_waited_for(driver: Path) -> None:
    command(driver, "exec /bin/sleep 60")
    found, problem = gpus(timeout_s=0.05)
    assert found == []
    assert problem is not None and "does not answer" in problem


def test_cores_and_memory_are_what_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = machine()
    assert seen.cores == len(os.sched_getaffinity(0))
    assert 0 < seen.memory_bytes <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    assert machine().memory_bytes == 1 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert machine().memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
