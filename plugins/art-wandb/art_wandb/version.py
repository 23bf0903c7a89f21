"""What a version of an artifact says of itself by its metadata, which is believed only as far as it can be checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_core.checkpoint import MANIFEST, OPTIMIZER, Manifest, manifest_bytes, parse_manifest
from art_core.file_record import corrupt
from art_core.protocols.store import content_key
from art_core.run_key import RunKey

PROJECT, RUN, STEP = "art.project", "art.run", "art.step"
CONTENT, TEXT, DROPPED_FILES = "art.content", "art.manifest", "art.dropped"
BASE_MODEL, PROVENANCE = "wandb.base_model", "wandb.provenance"
DEPLOYED = "art.deployed"


@dataclass(frozen=True)
class Version:
    """A version that is there, as a listing shows it."""

    number: int
    step: int
    metadata: Mapping[str, Any]
    aliases: frozenset[str]
    size_bytes: int
    files: int
    created_s: float

    @property
    def content(self) -> object:
        """`content_key` of what it holds."""
        return self.metadata.get(CONTENT)

    @property
    def dropped(self) -> frozenset[str]:
        """Names of files that were dropped on purpose."""
        return frozenset({OPTIMIZER} if self.metadata.get(DROPPED_FILES) else ())

    def manifest(self, run: RunKey) -> Manifest:
        """The checkpoint's manifest.

        Raises:
            CheckpointCorruptError: It is missing, was changed, or is of another run or step.
        """
        where = f"{run} v{self.number}: {MANIFEST}"
        text = self.metadata.get(TEXT)
        manifest = parse_manifest(text.encode() if isinstance(text, str) else b"", where)
        if (manifest.run, manifest.step) != (run.run, self.step):
            raise corrupt(where, f"is of run {manifest.run!r} step {manifest.step}")
        return manifest

    def require_size(self, what: str, size_bytes: int, files: int) -> None:
        """Refuse a version whose files are not there, or have not the sizes that they should have.

        Raises:
            CheckpointCorruptError: They differ.
        """
        if (self.size_bytes, self.files) != (size_bytes, files):
            raise corrupt(
                what,
                f"has {self.files} files of {self.size_bytes} bytes; its manifest says {files} of {size_bytes} bytes",
            )


@dataclass(frozen=True)
class Held:
    """What W&B holds of a step."""

    adapters: Sequence[Version] = ()
    """The oldest first: that one counts."""
    states: Sequence[Version] = ()
    """Optimizer states of that step number, whatever adapter they belong to; the oldest first."""

    @property
    def adapter(self) -> Version | None:
        """The version that counts as the step's."""
        return next(iter(self.adapters), None)

    @property
    def state(self) -> Version | None:
        """The optimizer state of the version that counts."""
        return self.state_of(self.adapter.content) if self.adapter is not None else None

    def state_of(self, content: object) -> Version | None:
        """The optimizer state of a checkpoint; a machine that was lost may have left another one's."""
        return next((each for each in self.states if each.content == content), None)


def state_metadata(run: RunKey, manifest: Manifest) -> dict[str, Any]:
    """Metadata of what belongs to a step."""
    return {PROJECT: run.project, RUN: run.run, STEP: manifest.step, CONTENT: content_key(manifest)}


def lora_metadata(run: RunKey, manifest: Manifest, dropped: bool) -> dict[str, Any]:
    """Metadata of a step itself.

    Args:
        run: Whose.
        manifest: The step's.
        dropped: Whether its optimizer state was dropped.
    """
    return {
        **state_metadata(run, manifest),
        TEXT: manifest_bytes(manifest).decode(),
        DROPPED_FILES: [OPTIMIZER] if dropped else [],
        BASE_MODEL: manifest.base_model.name,
        PROVENANCE: ["local-rl"],
    }


def by_step(run: RunKey, described: Iterable[Mapping[str, Any]]) -> dict[int, list[Version]]:
    """A run's steps to their versions, the oldest first; what is not ours, or of another run, is passed over.

    Args:
        run: Whose.
        described: The versions, the oldest first (`art_wandb.artifact.versions`).
    """
    steps: defaultdict[int, list[Version]] = defaultdict(list)
    for each in described:
        metadata = each["metadata"]
        if (metadata.get(PROJECT), metadata.get(RUN)) == (run.project, run.run) and type(metadata.get(STEP)) is int:
            steps[metadata[STEP]].append(described_version(each))
    return dict(steps)


def described_version(described: Mapping[str, Any]) -> Version:
    """A version of ours, as the W&B process describes it."""
    metadata = described["metadata"]
    number, size, files, created = (described[key] for key in ("version", "size_bytes", "files", "created_s"))
    return Version(number, metadata[STEP], metadata, frozenset(described["aliases"]), size, files, created)
