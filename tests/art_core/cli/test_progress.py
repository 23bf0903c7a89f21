"""The bar of bytes: what it counts, and that it is seen on a terminal only."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from art_core.cli.progress import ByteBar, bytes_in
from art_core.local_store import LocalStore
from tests.staged import stage_step


def counted(bar: ByteBar) -> tuple[float, float | None]:
    bar.get_renderables()
    (task,) = bar.tasks
    return task.completed, task.total


def all_of(fd: int) -> str:
    """What is written to a terminal until nobody has it open any more."""
    pieces = []
    try:
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    except OSError as error:  # how Linux says that the other side is closed
        assert error.errno == errno.EIO
    return b"".join(pieces).decode()


def test_a_copy_counts_as_it_comes_and_stays_when_its_directory_goes(tmp_path: Path) -> None:
    bar = ByteBar("pulling")
    bar.expect(300)
    assert counted(bar) == (0, 300)
    bar.watch(tmp_path / "copy")
    assert counted(bar) == (0, 300), "it is not there yet"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a").write_bytes(bytes(120))
    list(bar.get_renderables())
    assert bar.tasks[0].completed == 120
    bar.add(200)
    (tmp_path / "copy" / "a").write_bytes(bytes(999))
    list(bar.get_renderables())
    assert bar.tasks[0].completed == 200


def test_a_directory_that_goes_counts_nothing(tmp_path: Path) -> None:
    assert bytes_in(tmp_path / "gone") == 0


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_pull_is_drawn_on_a_terminal_only(tmp_path: Path, terminal: bool) -> None:
    run = tmp_path / "store" / "p" / "models" / "r"
    await LocalStore().commit(run, stage_step(run, 1))
    command = [str(Path(sys.executable).with_name("art")), "checkpoints", "pull"]
    command += ["--store", f"file://{tmp_path / 'store'}", "--run", "p/r", "--path", str(tmp_path / "here")]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=theirs if terminal else subprocess.PIPE, env=environment, text=True
        ) as pulled,
        ThreadPoolExecutor(1) as reading,
    ):
        os.close(theirs)
        screen = reading.submit(all_of, ours)  # a terminal that nobody reads is full some time, and its writer waits
        told, drawn = pulled.communicate()
        drawn = screen.result() if terminal else drawn
    assert pulled.returncode == 0
    assert Path(told.strip()).is_dir()
    if terminal:
        assert "pulling p/r" in drawn and "bytes" in drawn
    else:
        assert drawn == ""
    os.close(ours)
