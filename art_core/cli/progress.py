"""How far a copy is: a bar of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from art_core.protocols.store import StoreEntry


class ByteBar(Progress):
    """A bar on the terminal's error output; nothing where that is no terminal.

    Of a copy that comes to be in a directory the bar looks, whenever it is drawn, how much is there: so any store will
    do, whatever its client library tells. Of one that goes out it knows which steps are whole.

    Args:
        what: Stands before the bar.
    """

    def __init__(self, what: str) -> None:
        self._whole = 0
        self._directory: Path | None = None
        self._task: TaskID | None = None  # rich draws once before there is any
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        super().__init__(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self.add_task(what, total=None)

    def expect(self, total: int) -> None:
        """Say how many bytes there are in all."""
        assert self._task is not None
        self.update(self._task, total=total)

    def watch(self, directory: Path) -> None:
        """Count what comes to be in a directory, besides what is whole."""
        self._directory = directory

    def comes(self, entry: StoreEntry, directory: Path) -> None:
        """Say that one step, and no more, comes to be in a directory."""
        self.expect(entry.size_bytes)
        self.watch(directory)

    def add(self, count: int) -> None:
        """Say that so many bytes more are whole; the directory that was watched is done with."""
        self._whole += count
        self._directory = None
        self._look()

    def get_renderables(self) -> Iterable[RenderableType]:
        """As rich calls it, to draw."""
        self._look()
        return super().get_renderables()

    def _look(self) -> None:
        if self._task is not None:
            self.update(self._task, completed=self._whole + (bytes_in(self._directory) if self._directory else 0))


def bytes_in(directory: Path) -> int:
    """Bytes of a directory's files; 0 where it is none that can be read, or goes while it is looked at."""
    try:
        return sum(each.stat().st_size for each in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return 0
