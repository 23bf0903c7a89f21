"""Stage 4: a checkpoint is files and a manifest that says exactly which.

The trainer writes adapter and optimizer files into a staging directory; core adds the probe and, last, the
manifest with every file's size and sha256. A directory without a whole, matching manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Required, TypedDict, Unpack

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from art_core import disk
from art_core.base_model import BaseIdentity
from art_core.errors import CheckpointCorruptError, CheckpointError
from art_core.file_record import FileRecord, corrupt, differs, force, open_regular, record
from art_core.step import Probe

MANIFEST = "manifest.json"
PROBE = "probe.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"

DROPPABLE = frozenset({OPTIMIZER})
"""Files that a checkpoint may lose on purpose and still be whole."""
DROPPED = ".dropped"
"""What is added to a dropped file's name, to name the empty file that says so."""

MANIFEST_LIMIT_BYTES = 4 << 20
_THREADS = 4
_END = b"\n}"
_SEAL = b',\n "manifest_sha256": "%s"\n}'
_SEALED = re.compile(rb',\n "manifest_sha256": "([0-9a-f]{64})"\n}$')
_ALLOWED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model", ".md")


def _plain_name(name: str) -> str:
    if not name or name.startswith(".") or len(name.encode()) > 255 or set(name) & set("/\\\0") or name == MANIFEST:
        raise ValueError(f"file name {name!r} is not allowed; allowed: a plain name without separators or leading dot")
    if not name.endswith(_ALLOWED_SUFFIXES):
        raise ValueError(
            f"file {name!r} is of a kind that is not allowed (a pickle can run code when read); "
            f"allowed: {', '.join(_ALLOWED_SUFFIXES)}"
        )
    return name


def _with_adapter(files: dict[str, FileRecord]) -> dict[str, FileRecord]:
    if missing := sorted({ADAPTER, ADAPTER_CONFIG} - files.keys()):
        raise ValueError(f"{' and '.join(missing)} must be among them")
    return files


class Manifest(BaseModel):
    """What a checkpoint is: written last, read first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = Field(default=1, ge=1, le=1)
    run: str
    step: int = Field(ge=0)
    base_model: BaseIdentity
    parent: int | None = None
    """Step of this run that this one was trained from; None for step 0 and for a forked step."""
    origin: str | None = None
    """Of a forked step: the checkpoint that it was copied from, ``<project>/<run>@<step>``."""
    updated: bool = True
    """False where the step made no optimizer update: the adapter equals its parent's."""
    files: Annotated[dict[Annotated[str, AfterValidator(_plain_name)], FileRecord], AfterValidator(_with_adapter)]
    metrics: dict[str, FiniteFloat] = {}
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
    """A checkpoint that stands whole on this machine; `directory` is its final path, which never moves."""

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


class ManifestFields(TypedDict, total=False):
    """What `write_manifest` is told; see `Manifest`."""

    run: Required[str]
    step: Required[int]
    base_model: Required[BaseIdentity]
    parent: int | None
    origin: str | None
    updated: bool
    metrics: Mapping[str, float]
    versions: Mapping[str, str]


def write_manifest(directory: Path, **fields: Unpack[ManifestFields]) -> Checkpoint:
    """Describe every staged file and write the manifest beside them. Only core does this, never a part.

    The files are forced to the disk while they are hashed, so that a commit, which forces all of it before it shows
    the checkpoint, finds little left to do.

    Args:
        directory: Staging directory with all files in place.
        **fields: The manifest's other fields.

    Raises:
        CheckpointError: A file is a link, a directory, a pickle or otherwise not allowed, or a metric is not finite.
        StoreError: The manifest can't be written; the path and the system's reason are named.
    """
    with disk.disk_errors(f"write the manifest of step {fields['step']}"):
        names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST)
        try:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="art-hash") as threads:
                files = dict(zip(names, threads.map(lambda name: force(directory / name), names), strict=True))
            manifest = Manifest.model_validate({**fields, "files": files})
        except ValidationError as error:
            raise CheckpointError(f"{directory}: {_reason(error)}", stage="checkpoint") from error
        disk.write(directory / MANIFEST, manifest_bytes(manifest))
    return Checkpoint(directory, manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it stands in its file: its last field is the sha256 of what it would be without that field.

    Raises:
        CheckpointError: It is larger than 4 MiB.
    """
    data = manifest.model_dump_json(indent=1).encode()
    data = data.removesuffix(_END) + _SEAL % hashlib.sha256(data).hexdigest().encode()
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise CheckpointError(f"the manifest has {len(data)} bytes; allowed: {MANIFEST_LIMIT_BYTES}")
    return data


def read_manifest(directory: Path) -> Manifest:
    """Read a checkpoint directory's manifest; its files are not looked at.

    Raises:
        CheckpointCorruptError: It is missing, not a regular file, larger than 4 MiB, or breaks the schema.
        StoreError: The system refuses to read it.
    """
    path = directory / MANIFEST
    with open_regular(path) as (file, size):
        if size > MANIFEST_LIMIT_BYTES:
            raise corrupt(path, f"has {size} bytes; allowed: {MANIFEST_LIMIT_BYTES}")
        return parse_manifest(file.read(), path)


def parse_manifest(data: bytes, where: object) -> Manifest:
    """A manifest from its bytes. One without a digest of itself, written by hand, is believed.

    Args:
        data: What its file, or its object in a remote store, holds.
        where: What to call it in the error.

    Raises:
        CheckpointCorruptError: A byte was changed, or it breaks the schema.
    """
    if seal := _SEALED.search(data):
        data = data[: seal.start()] + _END
        if hashlib.sha256(data).hexdigest() != seal[1].decode():
            raise corrupt(where, "was changed after it was written")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise corrupt(where, f"is not as it should be: {_reason(error)}") from error


def verify(directory: Path, manifest: Manifest | None = None, names: Collection[str] | None = None) -> Manifest:
    """Check a checkpoint directory, byte by byte, against its manifest.

    Args:
        directory: The checkpoint.
        manifest: What its manifest must be; None: what stands there.
        names: Check only these files, and ignore the others; None: all of them, and that there are no others.

    Returns:
        Its manifest.

    Raises:
        CheckpointCorruptError: A file is missing, extra, not regular, or differs in size or sha256; it is named.
        StoreError: The system refuses to read a file.
    """
    found = read_manifest(directory)
    if manifest is not None and found != manifest:
        raise corrupt(directory / MANIFEST, f"is of {found.run!r} step {found.step} with other content than expected")
    for name in check_layout(directory, found) if names is None else names:
        if name not in found.files:
            raise corrupt(directory / name, "is not in the manifest")
        if (seen := _record(directory / name)) not in (None, found.files[name]):
            raise differs(directory / name, seen, found.files[name])
    return found


def check_layout(directory: Path, manifest: Manifest) -> Sequence[str]:
    """Check that exactly the manifest's files are there, regular and of their sizes, without reading them.

    Returns:
        Names of the files that are there: all of the manifest's but those dropped on purpose.

    Raises:
        CheckpointCorruptError: One is missing, extra, not regular or of another size; it is named.
        StoreError: The system refuses to list the directory.
    """
    seen = _scan(directory)
    expected = {name: file.size_bytes for name, file in manifest.files.items()}
    markers = {name + DROPPED: name for name in DROPPABLE & expected.keys()}
    dropped = {name for marker, name in markers.items() if marker in seen}
    expected |= dict.fromkeys(markers.keys() & seen.keys(), 0)
    for name in sorted(seen.keys() | expected.keys() - (dropped - seen.keys())):
        path = directory / name
        if name not in seen:
            raise corrupt(path, "is missing")
        if name not in expected:
            raise corrupt(path, "is not in the manifest")
        if not stat.S_ISREG(seen[name].st_mode):
            raise corrupt(path, "is not a regular file")
        if seen[name].st_size != expected[name]:
            raise corrupt(path, f"has {seen[name].st_size} bytes; its manifest says {expected[name]}")
    return [name for name in manifest.files if name in seen]


def _scan(directory: Path) -> dict[str, os.stat_result]:
    """What stands beside the manifest; looked at again where a file was dropped on purpose meanwhile."""
    for left in reversed(range(1 + len(DROPPABLE))):
        with disk.disk_errors("read a checkpoint"):
            try:
                with os.scandir(directory) as entries:
                    return {each.name: each.stat(follow_symlinks=False) for each in entries if each.name != MANIFEST}
            except FileNotFoundError as error:
                if not left:
                    raise corrupt(error.filename or directory, "is missing") from error
    raise AssertionError("unreachable")


def _record(path: Path) -> FileRecord | None:
    """A file's record; None where it has been dropped on purpose while one was looking."""
    try:
        return record(path)
    except CheckpointCorruptError:
        if path.name in DROPPABLE and path.with_name(path.name + DROPPED).exists():
            return None
        raise


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'manifest'}: {first['msg']}"
