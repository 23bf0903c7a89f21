"""Rows of text: a table on a terminal, plain aligned lines where the output goes elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title.

    Args:
        console: Where to.
        title: What they are.
        columns: Names of the columns.
        rows: One text per column.
    """
    if console.is_terminal:
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    for line in (f"{title}:", *(f"  {line.rstrip()}" for line in lines), ""):
        say(console, line)


def say(console: Console, line: str) -> None:
    """Print a line as it is: not wrapped, not coloured, brackets kept."""
    console.print(Text(line), soft_wrap=True, highlight=False)


def packages_text(versions: Mapping[str, str]) -> str:
    """Packages and their versions on one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "-"


def gigabytes(size_bytes: int | None) -> str:
    """A large size as people read it."""
    return "?" if size_bytes is None else f"{size_bytes / 1e9:.1f} GB"


def megabytes(size_bytes: int | None) -> str:
    """A file's size as people read it; a small one in kilobytes, or bytes."""
    if size_bytes is None:
        return "?"
    if size_bytes < 1e3:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
