"""Which keys a checkpoint's files have in an object store; see `art_core.object_store` for why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import unquote

from art_core.bucket import StoredObject
from art_core.checkpoint import DROPPED, MANIFEST, Manifest
from art_core.errors import StoreError
from art_core.protocols.store import content_key
from art_core.run_key import RunKey

_KEY_LIMIT_BYTES = 1024
_KEY_DIGITS = 16
_FILE_LIMIT_BYTES = 300
"""Of a key, what comes after a run's place."""
_OURS = re.compile(rf"(\d{{4,}})/(?:{re.escape(MANIFEST)}|[0-9a-f]{{{_KEY_DIGITS}}}/[^/]+)")


def place_of(run: RunKey) -> str:
    """What the keys of a run's checkpoints begin with.

    Raises:
        StoreError: The names are too long for keys.
    """
    place = f"{_segment(run.project)}/models/{_segment(run.run)}/checkpoints/"
    if len(place.encode()) > _KEY_LIMIT_BYTES - _FILE_LIMIT_BYTES:
        raise StoreError(f"the names of run {run} make keys of more than {_KEY_LIMIT_BYTES} bytes; choose shorter ones")
    return place


def lease_of(run: RunKey) -> str:
    """What the keys of the marks begin with by which a run's writers take turns."""
    return f".art-lease/{_segment(run.project)}/{_segment(run.run)}/"


def is_ours(*segments: str) -> bool:
    """Whether parts of a key are written as we write names; others are somebody else's keys."""
    return all(_segment(unquote(each)) == each for each in segments)


def _segment(name: str) -> str:
    """A name as a part of a key: letters, digits and ``-_.`` as they are, every other character percent-encoded."""
    return "".join(c if c.isalnum() or c in "-_." else "".join(f"%{b:02X}" for b in c.encode()) for c in name)


def keys_of(place: str, manifest: Manifest) -> dict[str, str]:
    """A checkpoint's files to their keys.

    Args:
        place: What the step's keys begin with.
        manifest: Of the step.
    """
    return {name: f"{place}{content_key(manifest)[:_KEY_DIGITS]}/{name}" for name in manifest.files}


def forms_of(key: str) -> set[str]:
    """The keys of a file: its own, and that which says that it was dropped."""
    return {key, key + DROPPED}


def by_step(place: str, objects: Iterable[StoredObject]) -> dict[int, dict[str, StoredObject]]:
    """A run's steps to their objects by key; what is not of our form is passed over.

    Args:
        place: What the run's keys begin with.
        objects: A listing.
    """
    steps: defaultdict[int, dict[str, StoredObject]] = defaultdict(dict)
    for each in objects:
        found = _OURS.fullmatch(each.key.removeprefix(place))
        if found and f"{int(found[1]):04d}" == found[1]:
            steps[int(found[1])][each.key] = each
    return steps
