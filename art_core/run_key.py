"""Which run: its project and its name, as every store knows it, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from art_core.errors import ConfigError


@dataclass(frozen=True, order=True)
class RunKey:
    """A run by name. Both names are any text that is a plain file name.

    Raises:
        ConfigError: A name is not plain.
    """

    project: str
    run: str

    def __post_init__(self) -> None:
        plain_name("project", self.project)
        plain_name("run", self.run)

    def __str__(self) -> str:
        return f"{self.project}/{self.run}"


def plain_keys(names: Iterable[tuple[str, str]]) -> list[RunKey]:
    """The runs among what was found in a place, sorted; what can be no run's name is somebody else's.

    Args:
        names: Projects and runs, as they were read.
    """
    return sorted({RunKey(project, run) for project, run in names if _is_plain(project) and _is_plain(run)})


def plain_name(what: str, name: str) -> str:
    """Refuse a name that would lead out of the directory, or the prefix, that it is put into.

    Args:
        what: What is named, for the message.
        name: The name.

    Returns:
        The name, unchanged.

    Raises:
        ConfigError: It is not plain.
    """
    if not _is_plain(name):
        raise ConfigError(
            f"{what} name is {name!r}; allowed: 1 to 255 bytes of text, no '/', '\\' or NUL, not starting with a dot"
        )
    return name


def _is_plain(name: str) -> bool:
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        return False
    try:
        return len(name.encode()) <= 255
    except UnicodeEncodeError:  # bytes that are no UTF-8, as a file system gives them
        return False
