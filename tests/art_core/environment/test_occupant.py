"""An environment that a process runs in is not removed under it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from art_core.environment import remove
from art_core.environment.occupant import Occupant, occupants
from art_core.errors import EnvironmentBuildError

NAME = "bow-cpu-cpython311-0123456789ab"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment of a cache, as the virtual environment that it is."""
    directory = tmp_path / "environments" / NAME
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", directory], check=True)
    return directory


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says when it is up, and ends with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.communicate(b"\n")


UP = "print('up', flush=True); input()"


def test_it_is_refused_while_its_interpreter_runs_and_names_that(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    with running(python, "-c", UP) as process:
        assert occupants(environment) == [Occupant(process.pid, f"python -c {UP}")]
        with pytest.raises(EnvironmentBuildError, match=rf"is in use by process {process.pid} \(python -c .*--force"):
            remove("bow", tmp_path, {})
        assert environment.is_dir()
    assert remove("bow", tmp_path, {}) == [environment]


def test_a_process_of_another_name_is_found_by_its_libraries(environment: Path, tmp_path: Path) -> None:
    """As vLLM's engine core, which calls itself otherwise; here another interpreter has a file of it in memory."""
    library = environment / "lib" / "kernel.so"
    library.write_bytes(bytes(4096))
    mapped = f"import mmap; file = open({str(library)!r}); m = mmap.mmap(file.fileno(), 0, prot=1)"
    with running(sys.executable, "-c", f"{mapped}; {UP}") as process:
        assert [each.pid for each in occupants(environment)] == [process.pid]
        assert remove("bow", tmp_path, {}, force=True) == [environment]


def test_a_directory_whose_name_only_begins_alike_is_another(environment: Path) -> None:
    with running(environment / "bin" / "python", "-c", UP):
        assert not occupants(environment.with_name(NAME[:-1]))
