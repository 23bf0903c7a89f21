"""What the W&B test server keeps: runs and artifacts, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

ENTITY = "team"


@dataclass
class Run:
    """A W&B run."""

    project: str
    name: str
    """Its id, in the words of users."""
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    opened: int = 0
    """How often a client has begun or resumed it."""
    state: str = "running"


@dataclass
class Artifact:
    """A version of an artifact, or what is to become one."""

    id: str
    project: str
    collection: str
    type: str
    digest: str
    metadata: str
    run: str
    description: str | None = None
    state: str = "PENDING"
    version: int = -1
    wanted: Sequence[str] = ()
    """Aliases that it gets at the commit."""
    aliases: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    @property
    def place(self) -> str:
        """What its files' names begin with."""
        return f"{self.project}/{self.collection}/v{self.version}"

    @property
    def size(self) -> int:
        """Of all its files, in bytes."""
        return sum(map(len, self.files.values()))


class Record:
    """Everything; changed under `lock` only."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str], Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.next_version: dict[tuple[str, str], int] = {}
        self.uploads: dict[str, Callable[[bytes], None]] = {}

    def open_run(self, project: str, name: str | None) -> tuple[Run, bool]:
        """A run, made if it is new; and whether it was."""
        key = project, name or uuid.uuid4().hex[:8]
        new = key not in self.runs
        run = self.runs.setdefault(key, Run(*key))
        run.opened += 1
        return run, new

    def stream(self, path: str, data: dict[str, Any]) -> None:
        """Take what a run's client streams."""
        _, _, _, project, name, _ = unquote(path).split("/")
        with self.lock:
            run = self.runs[project, name]
            files = data.get("files") or {}
            for line in files.get("wandb-history.jsonl", {}).get("content", []):
                run.history.append(json.loads(line))
            for line in files.get("wandb-summary.json", {}).get("content", []):
                run.summary = json.loads(line)
            if data.get("complete"):
                run.state = "finished" if data.get("exitcode") == 0 else "failed"

    def upload(self, take: Callable[[bytes], None]) -> str:
        """A new place to which bytes can be put, once or again."""
        key = uuid.uuid4().hex
        self.uploads[key] = take
        return key

    def download(self, key: str) -> bytes | None:
        """The bytes at a place."""
        artifact_id, _, name = key.partition("/")
        with self.lock:
            artifact = self.artifacts.get(artifact_id)
            if artifact is None:
                return None
            return artifact.manifest if name == "wandb_manifest.json" else artifact.files.get(name)

    def versions(self, project: str, collection: str) -> list[Artifact]:
        """Committed versions of a collection, the newest first."""
        found = [
            each
            for each in self.artifacts.values()
            if (each.project, each.collection, each.state) == (project, collection, "COMMITTED")
        ]
        return sorted(found, key=lambda each: -each.version)

    def create(self, values: dict[str, Any]) -> Artifact:
        """Begin an artifact; one whose digest stands already is that one."""
        project, collection = values["projectName"], values["artifactCollectionName"]
        for each in self.versions(project, collection):
            if each.type != values["artifactTypeName"]:
                raise PermissionError(f"artifact {collection!r} already exists with type {each.type!r}")
            if each.digest == values["digest"]:
                self.alias(each, [alias["alias"] for alias in values.get("aliases") or []])
                return each
        artifact = Artifact(
            id=base64.b64encode(uuid.uuid4().bytes).decode().replace("/", "_"),
            project=project,
            collection=collection,
            type=values["artifactTypeName"],
            digest=values["digest"],
            metadata=values.get("metadata") or "{}",
            run=values.get("runName") or "",
            description=values.get("description"),
            wanted=[alias["alias"] for alias in values.get("aliases") or []],
        )
        self.artifacts[artifact.id] = artifact
        return artifact

    def commit(self, artifact: Artifact) -> None:
        """Make an artifact a version that everybody sees; refused where a file of its manifest is not there."""
        entries = json.loads(artifact.manifest)["contents"]
        for name, entry in entries.items():
            if "ref" in entry:
                continue
            digest = base64.b64encode(hashlib.md5(artifact.files.get(name, b"")).digest()).decode()
            if name not in artifact.files or digest != entry["digest"]:
                raise PermissionError(f"file {name!r} is not there, or is another one than the manifest says")
        key = artifact.project, artifact.collection
        artifact.version = self.next_version.get(key, 0)
        self.next_version[key] = artifact.version + 1
        artifact.state = "COMMITTED"
        self.alias(artifact, [*artifact.wanted, "latest"])

    def alias(self, artifact: Artifact, aliases: Sequence[str]) -> None:
        """Move aliases to a version."""
        for each in self.versions(artifact.project, artifact.collection):
            each.aliases -= set(aliases)
        artifact.aliases |= set(aliases)

    def delete(self, artifact: Artifact) -> None:
        """Delete a version and its files."""
        artifact.state = "DELETED"
        del self.artifacts[artifact.id]
