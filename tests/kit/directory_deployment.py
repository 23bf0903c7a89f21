"""A publisher as somebody else would write it: brings adapters into a directory, where their server reads."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from art_core.capability import Capabilities
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, StoredCheckpoint, verify
from art_core.config import PartOptions
from art_core.errors import PublishError
from art_core.part import PublisherPart
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.protocols.engine import InferenceEngine
from art_core.testing import DeploymentConformance, DirectoryObjects, Outage


class DirectoryOptions(PartOptions):
    """Where the adapters go."""

    part: ClassVar[str] = "directory"
    root: str = "/nowhere"


class DirectoryPublisher:
    """Keeps each step in a directory called by its project, run and step; a whole one appears by its rename."""

    def __init__(self, options: DirectoryOptions, engine: InferenceEngine | None, capabilities: Capabilities) -> None:
        self._root = Path(options.root)

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        verify(stored.directory, stored.manifest)
        place = self._place(stored)
        if place.exists():
            self.require_same(place, stored)
        else:
            try:
                self._bring(stored, place)
            except OSError as error:
                raise PublishError(f"step {stored.step} can't be brought to {place}: {error}") from error
        return PublishedPolicy(place.name, stored, Proof(ProofKind.NONE), base_url="https://far.example/v1")

    async def retract(self, policy: PublishedPolicy) -> None:
        """Nothing: whoever reads the directory may go on doing so."""

    def require_same(self, place: Path, stored: StoredCheckpoint) -> None:
        """Refuse a place that holds another adapter."""
        if hashlib.sha256((place / ADAPTER).read_bytes()).hexdigest() != stored.manifest.adapter_digest:
            raise PublishError(f"{place} holds another adapter than step {stored.step}'s; remove it first")

    def _bring(self, stored: StoredCheckpoint, place: Path) -> None:
        staged = self._root / f".{uuid.uuid4().hex}"
        staged.mkdir()
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(stored.directory / name, staged / name)
        staged.rename(place)

    def _place(self, stored: StoredCheckpoint) -> Path:
        project = stored.directory.parents[3].name
        return self._root / hashlib.sha256(f"{project}/{stored.run}@{stored.step}".encode()).hexdigest()


def directory_part(create: type[DirectoryPublisher] = DirectoryPublisher) -> PublisherPart:
    """The part, as a plugin would register it."""
    return PublisherPart(name="directory", options=DirectoryOptions, create=create, serves=False)


@contextmanager
def no_directory(root: Path) -> Iterator[None]:
    """Inside the block the directory is not there."""
    aside = root.with_name(f"{root.name} aside")
    root.rename(aside)
    yield
    aside.rename(root)


class DirectoryDeployment(DeploymentConformance):
    """The kit on a directory; `part` says which publisher brings steps there."""

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, tmp_path_factory: pytest.TempPathFactory) -> DirectoryOptions:
        return DirectoryOptions(root=str(tmp_path_factory.mktemp("far")))

    @pytest.fixture(scope="class")
    @classmethod
    def objects(cls, options: DirectoryOptions) -> DirectoryObjects:
        return DirectoryObjects(Path(options.root))

    @pytest.fixture(scope="class")
    @classmethod
    def outage(cls, options: DirectoryOptions) -> Outage:
        return lambda: no_directory(Path(options.root))
