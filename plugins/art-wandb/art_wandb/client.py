"""Runs and artifacts as the store, the publisher and the observer ask for them, by names of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from art_core.file_record import FileRecord
from art_core.run_key import RunKey, plain_keys
from art_wandb.name import artifact_name, optimizer_name, project_name
from art_wandb.options import WandbStoreOptions
from art_wandb.process import WANDB
from art_wandb.version import PROJECT, RUN, Held, Version, by_step, described_version

Kind = Literal["lora", "optimizer"]
"""What an artifact holds, and its type in W&B."""


@dataclass(frozen=True)
class Upload:
    """A version that is to be."""

    kind: Kind
    step: int
    files: Mapping[str, Path]
    metadata: Mapping[str, Any]


def alias(step: int) -> str:
    """What a step's version is called."""
    return f"step{step}"


class WandbClient:
    """Calls for one account.

    Args:
        options: Which, and how long calls may take.
    """

    def __init__(self, options: WandbStoreOptions) -> None:
        self._options = options
        self._entity = ""

    async def check(self) -> None:
        """Ask W&B whether it knows the key.

        Raises:
            StoreError: It does not, W&B is turned off, or it can't be reached.
        """
        self._entity = str(await self._call("enter", entity=self._options.entity, again=True))

    async def entity(self) -> str:
        """The entity, asked for once.

        Raises:
            StoreError: As `check`.
        """
        if not self._entity:
            self._entity = str(await self._call("enter", entity=self._options.entity))
        return self._entity

    async def runs(self) -> Sequence[RunKey]:
        """Every run with an adapter that was written by us."""
        found = await self._call("runs", entity=await self.entity(), kind="lora", keys=[PROJECT, RUN])
        return plain_keys(found)

    async def versions(self, run: RunKey, kind: Kind) -> dict[int, list[Version]]:
        """A run's steps to their versions, the oldest first."""
        return by_step(run, await self._call("versions", shelf=await self._shelf(run, kind)))

    async def held(self, run: RunKey) -> dict[int, Held]:
        """A run's steps to all that there is of each, by rising step."""
        states = await self.versions(run, "optimizer")  # first: an adapter is marked before its state goes
        adapters = await self.versions(run, "lora")
        return {step: Held(adapters.get(step, ()), states.get(step, ())) for step in sorted(adapters | states)}

    async def add(self, run: RunKey, upload: Upload) -> Version:
        """Add a version."""
        content = {
            "files": {name: str(path.absolute()) for name, path in upload.files.items()},
            "metadata": dict(upload.metadata),
            "aliases": [alias(upload.step)],
            "region": self._options.storage_region,
            "run_id": artifact_name(run.run),
        }
        shelf = await self._shelf(run, upload.kind)
        about = {"run_name": run.run, "content": content, "timeout_s": self._options.timeout_s}
        return described_version(await self._call("add", shelf=shelf, **about))

    async def fetch(
        self, run: RunKey, found: tuple[Kind, Version], limits: Mapping[str, int], directory: str
    ) -> dict[str, FileRecord]:
        """Write files of a version into a directory; one that is not there is left out of the answer.

        Args:
            run: Whose.
            found: The version.
            limits: Name to the largest size that is read, in bytes.
            directory: Where to; an absolute path.
        """
        kind, version = found
        shelf = await self._shelf(run, kind)
        where = {"version": version.number, "files": dict(limits), "directory": directory}
        answer = await self._call("fetch", shelf=shelf, **where)
        return {name: FileRecord(**record) for name, record in answer.items()}

    async def remove(self, run: RunKey, kind: Kind, versions: Sequence[Version]) -> None:
        """Delete versions."""
        if versions:
            gone = [each.number for each in versions]
            await self._call("remove", shelf=await self._shelf(run, kind), gone=gone)

    async def mark(self, run: RunKey, version: Version, metadata: Mapping[str, Any], aliases: Sequence[str]) -> Version:
        """Add to the metadata and the aliases of an adapter's version."""
        shelf = await self._shelf(run, "lora")
        added = {"metadata": dict(metadata), "aliases": list(aliases)}
        return described_version(await self._call("mark", shelf=shelf, version=version.number, **added))

    async def now_s(self) -> float:
        """The server's own clock, seconds since 1970."""
        return float(await self._call("now"))

    async def _shelf(self, run: RunKey, kind: Kind) -> dict[str, str]:
        name = artifact_name(run.run) if kind == "lora" else optimizer_name(run.run)
        return {"entity": await self.entity(), "project": project_name(run.project), "name": name, "type": kind}

    async def _call(self, method: str, **data: Any) -> Any:
        return await WANDB.call(method, self._options.timeout_s, data)
