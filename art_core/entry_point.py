"""What is installed under our entry-point group. Nothing of it is imported here."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from art_core.errors import PluginConflictError, PluginNotFoundError, nearest

GROUP = "art_core"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_log = logging.getLogger("art.plugins")


def installed() -> list[EntryPoint]:
    """Entry points of our group, those that one distribution shows twice (editable installs) counted once."""
    unique = {(entry.name, entry.value, distribution(entry)): entry for entry in entry_points(group=GROUP)}
    return list(unique.values())


def find_entry(kind: str, name: str) -> EntryPoint:
    """The entry point of that name.

    Args:
        kind: What is looked for, for the message.
        name: The plugin's.

    Raises:
        PluginNotFoundError: Nobody offers it; the nearest name is suggested.
        PluginConflictError: Two distributions offer it.
    """
    entries = installed()
    matches = [entry for entry in entries if entry.name == name]
    if not matches:
        raise not_installed(kind, name, {entry.name for entry in entries})
    if len(matches) > 1:
        owners = ", ".join(sorted(distribution(entry) for entry in matches))
        raise PluginConflictError(f"plugin name {name!r} is offered by {owners}; uninstall all but one")
    return matches[0]


def not_installed(kind: str, name: str, known: Iterable[str]) -> PluginNotFoundError:
    """What is raised where nobody offers a name.

    Args:
        kind: What was looked for.
        name: The name.
        known: Those that would have been right.
    """
    hint = f" (a plugin's distribution is called art-<name>: pip install art-{name})" if _NAME.fullmatch(name) else ""
    return PluginNotFoundError(f"{kind} {name!r} is not installed; {nearest(name, known)}{hint}")


def distribution(entry: EntryPoint) -> str:
    """The distribution that offers an entry point."""
    return _metadata(entry).get("name", entry.value)


def version(entry: EntryPoint) -> str:
    """That distribution's version."""
    return _metadata(entry).get("version", "?")


def _metadata(entry: EntryPoint) -> Mapping[str, str]:
    """Name and version of the distribution, as far as its metadata can be read: a broken one must not stop others."""
    if entry.dist is None:
        return {}
    try:
        found = entry.dist.metadata
        return {key.lower(): found[key] for key in ("Name", "Version") if key in found}
    except Exception as error:  # noqa: BLE001 - whatever is wrong with that file is wrong with that plugin alone
        _log.debug("the metadata of %s can't be read", entry.value, exc_info=error)
        return {}
