"""Names of ours as names that W&B allows; a plain one stays as it is."""

from __future__ import annotations

import hashlib
import re

_LIMIT = 128
_DIGITS = 16
_ARTIFACT = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_IN_PROJECTS = frozenset("/\\#?%:")


def project_name(project: str) -> str:
    """A project's name in W&B."""
    plain = not _NOT_IN_PROJECTS & set(project) and project == project.strip() and project.isprintable()
    return project if plain and len(project) <= _LIMIT else _replaced(project)


def artifact_name(run: str) -> str:
    """The name in W&B of a run: its own, and that of the artifact which holds its checkpoints."""
    return run if _ARTIFACT.fullmatch(run) and len(run) <= _LIMIT else _replaced(run)


def optimizer_name(run: str) -> str:
    """The artifact that holds a run's optimizer states; no run can be called so by accident."""
    return _replaced(run, "optimizer-")


def _replaced(name: str, word: str = "") -> str:
    """What can be read of a name, with digits that make it a name of its own."""
    end = f"-{word}{hashlib.sha256(f'{word}{name}'.encode()).hexdigest()[:_DIGITS]}"
    readable = "-".join(_ARTIFACT.findall(name))
    return (readable[: _LIMIT - len(end)] + end).removeprefix("-")
