"""Stage 4: a checkpoint is files and a manifest that says exactly which.

The trainer writes adapter and optimizer files into a staging directory; core adds the probe and, last, the
manifest with every file's size and sha256. A directory without a whole, matching manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from art_core.base_model import BaseIdentity
from art_core.errors import CheckpointCorruptError
from art_core.step import Probe

MANIFEST = "manifest.json"
PROBE = "probe.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"

_MANIFEST_LIMIT_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a checkpoint is: written last, read first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = Field(default=1, ge=1, le=1)
    run: str
    step: int = Field(ge=0)
    base_model: BaseIdentity
    parent: int | None = None
    """Step this one was trained from; None for step 0."""
    updated: bool = True
    """False where the step made no optimizer update: the adapter equals its parent's."""
    files: dict[str, FileRecord]
    metrics: dict[str, float] = {}
    versions: dict[str, str] = {}
    """Distribution name to version, of the trainer's side."""

    @property
    def adapter_digest(self) -> str:
        """sha256 of the adapter's tensor file."""
        return self.files[ADAPTER].sha256


@dataclass(frozen=True)
class Checkpoint:
    """Staged local files with their manifest; not yet visible in any store."""

    directory: Path
    manifest: Manifest


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that a store holds whole; `directory` is its final local path, which never moves."""

    directory: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The training step."""
        return self.manifest.step

    @property
    def run(self) -> str:
        """The run's name."""
        return self.manifest.run

    def probe(self) -> Probe | None:
        """The step's probe; None for step 0, which was not trained."""
        return Probe.read(self.directory / PROBE) if PROBE in self.manifest.files else None


def record(path: Path) -> FileRecord:
    """Size and sha256 of a regular file.

    Raises:
        CheckpointCorruptError: It is a link, a device or a directory.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise CheckpointCorruptError(f"{path.name} is not a regular file", stage="checkpoint")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        size = file.tell()
    return FileRecord(size_bytes=size, sha256=digest.hexdigest())
