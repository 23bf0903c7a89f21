"""What the architecture tests read: the product's files and their syntax trees."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "art_core"
PRODUCT = (CORE, ROOT / "art", ROOT / "plugins", ROOT / "contrib")
PROJECTS = (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml"))


def python_files(*folders: Path) -> list[Path]:
    """Every Python file below the folders, sorted."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name(path: Path) -> str:
    """The path as a person would type it from the repository's root."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every tracked file: runs and notes that somebody keeps in the checkout are nobody's business here."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (ROOT / entry for entry in listed.split("\0") if entry)
    return tuple(sorted(path for path in paths if path.is_file()))
