"""In the process: W&B's artifacts, whose versions are a run's checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any

import requests
import wandb

from art_core import disk
from art_core.errors import StoreError
from art_wandb.failure import wandb_errors

_PAGE = 200
_PIECE_BYTES = 1 << 20
_THREADS = 4
_TIMEOUT_S = (10.0, 60.0)
"""To connect, and without any progress."""


@dataclass(frozen=True)
class Shelf:
    """An artifact: where versions stand."""

    entity: str
    project: str
    name: str
    type: str

    @property
    def path(self) -> str:
        """As the SDK has it."""
        return f"{self.entity}/{self.project}/{self.name}"


def versions(api: wandb.Api, shelf: Shelf) -> Sequence[dict[str, Any]]:
    """The versions that are whole, the oldest first; none where there is no such artifact."""
    with wandb_errors(f"list {shelf.path}"):
        found = [each for each in _listed(api, shelf) if each.state == "COMMITTED"]
        return sorted((_described(each) for each in found), key=lambda each: int(each["version"]))


def _listed(api: wandb.Api, shelf: Shelf) -> Iterator[wandb.Artifact]:
    try:
        yield from api.artifacts(shelf.type, shelf.path, per_page=_PAGE)
    except ValueError as error:
        # the SDK's way to say that the server answered, and has no such artifact. Its `artifact_collection_exists`
        # says the same of a server that fails
        if "Unable to parse 'Artifacts' response data" not in str(error):
            raise


def _described(artifact: wandb.Artifact) -> dict[str, Any]:
    """What `art_wandb.version` makes a `Version` of."""
    made = datetime.fromisoformat(artifact.created_at)
    return {
        "version": int(artifact.version.removeprefix("v")),
        "metadata": artifact.metadata,
        "aliases": artifact.aliases,
        "size_bytes": artifact.size,
        "files": artifact.file_count,
        "created_s": (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp(),
    }


def runs(api: wandb.Api, entity: str, kind: str, keys: Sequence[str]) -> Sequence[Sequence[str]]:
    """What stands under metadata keys, of one version of every artifact of a type that has them all."""
    found: list[Sequence[str]] = []
    with wandb_errors(f"list the projects of {entity}"):
        for project in api.projects(entity):
            for each in api.artifact_type(kind, f"{entity}/{project.name}").collections():
                shelf = Shelf(entity, project.name, each.name, kind)
                metadata = (version.metadata for version in _listed(api, shelf))
                named = ([str(one[key]) for key in keys] for one in metadata if one.keys() >= set(keys))
                found += islice(named, 1)
    return found


def add(run: wandb.Run, shelf: Shelf, content: Content, timeout_s: float) -> dict[str, Any]:
    """Upload files as a version; W&B makes no second one of equal files. When it returns, everybody sees it.

    Args:
        run: The run that makes it.
        shelf: Where.
        content: What.
        timeout_s: For all of it.

    Returns:
        The version.
    """
    with wandb_errors(f"write {shelf.path}"):
        artifact = wandb.Artifact(
            shelf.name, shelf.type, metadata=dict(content.metadata), storage_region=content.region
        )
        for name, path in content.files.items():
            artifact.add_file(path, name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=list(content.aliases))
        return _described(artifact.wait(int(timeout_s)))


@dataclass(frozen=True)
class Content:
    """A version that is to be."""

    files: Mapping[str, str]
    """Name to path."""
    metadata: Mapping[str, Any]
    aliases: Sequence[str]
    region: str | None
    run_id: str
    """The run of W&B's that it is made by."""


def fetch(api: wandb.Api, shelf: Shelf, version: int, files: Mapping[str, int], directory: Path) -> dict[str, Any]:
    """Write files of a version into a directory, each a new file, hashed on the way.

    Args:
        api: The SDK's.
        shelf: Where it stands.
        version: Which.
        files: Name to the largest size that is read.
        directory: Where to.

    Returns:
        Name to size and sha256; a file that is not there is left out.
    """
    with wandb_errors(f"read {shelf.path}:v{version}"):
        artifact = api.artifact(f"{shelf.path}:v{version}", type=shelf.type)
        urls = {each.name: each.direct_url for each in artifact.files(names=list(files))}
        there = [name for name in files if name in urls]
        with ThreadPoolExecutor(_THREADS) as threads:
            calls = [threads.submit(_download, urls[name], directory / name, files[name]) for name in there]
            return {name: call.result() for name, call in zip(there, calls, strict=True)}


def _download(url: str, path: Path, limit_bytes: int) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with disk.disk_errors(f"write {path.name}"), disk.opened(path, flags) as fd:
        for piece in _pieces(url, path.name):
            disk.write_all(fd, piece)
            digest.update(piece)
            size += len(piece)
            if size > limit_bytes:
                break
    return {"size_bytes": size, "sha256": digest.hexdigest()}


def _pieces(url: str, name: str) -> Iterator[bytes]:
    """A file's bytes; the network's errors are ours when they come out, because `requests` makes them OSErrors too."""
    with wandb_errors(f"download {name}"), requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer:
        answer.raise_for_status()
        yield from answer.iter_content(_PIECE_BYTES)


def remove(api: wandb.Api, shelf: Shelf, gone: Collection[int]) -> None:
    """Delete versions, the newest first; one that is gone already is passed over."""
    with wandb_errors(f"delete versions of {shelf.path}"):
        found = {int(each.version.removeprefix("v")): each for each in _listed(api, shelf)}
        for number in sorted(found.keys() & set(gone), reverse=True):
            found[number].delete(delete_aliases=True)


def mark(
    api: wandb.Api, shelf: Shelf, version: int, metadata: Mapping[str, Any], aliases: Sequence[str]
) -> dict[str, Any]:
    """Add to the metadata and the aliases of a version.

    Returns:
        The version.
    """
    with wandb_errors(f"change {shelf.path}:v{version}"):
        artifact = api.artifact(f"{shelf.path}:v{version}", type=shelf.type)
        artifact.metadata = {**artifact.metadata, **metadata}
        artifact.aliases = sorted({*artifact.aliases, *aliases})
        artifact.save()
        return _described(artifact)


def server_time_s(base_url: str) -> float:
    """The server's own clock, seconds since 1970."""
    with wandb_errors("ask the server for the time"):
        answer = requests.get(f"{base_url}/healthz", timeout=_TIMEOUT_S)
    if "Date" not in answer.headers:
        raise StoreError(f"{base_url} does not say what time it has")
    return parsedate_to_datetime(answer.headers["Date"]).timestamp()
