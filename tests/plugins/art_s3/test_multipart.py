"""kill -9 amid an upload in parts: nothing of it is seen, and the next sweep gives it up.

A proxy holds the rest of the upload back, so that the kill comes at the point that is meant however fast anything is.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions

from art_core.checkpoint import Checkpoint, verify, write_manifest
from art_core.object_store import ObjectStore
from art_core.run_key import RunKey
from art_core.testing.condition import until
from tests.plugins.art_s3.place import Place
from tests.plugins.art_s3.proxy import Spoil, proxy
from tests.staged import stage_step

KEY = RunKey("p", "r")
PART_BYTES, PARTS = 5 << 20, 9


def large(tmp_path: Path, step: int) -> Checkpoint:
    """A step with a file that goes up in parts."""
    staged = stage_step(tmp_path / KEY.run, step)
    (staged.directory / "large.safetensors").write_bytes(bytes(range(256)) * (PARTS * PART_BYTES // 256))
    return write_manifest(staged.directory, run=KEY.run, step=step, base_model=staged.manifest.base_model)


def victim(options: S3StoreOptions, checkpoint: Checkpoint) -> None:
    """Commits, if it is let."""
    asyncio.run(ObjectStore(S3Bucket(options), "s3", False).commit(KEY, checkpoint))


@dataclass
class HeldBack:
    """Answers no part but the first few, and no completion."""

    passing: int
    came: bool = False
    """Whether something is held back by now."""

    def __call__(self, method: str, path: str) -> tuple[int, str] | None:
        part = int(path.partition("partNumber=")[2].partition("&")[0] or 0)
        held = part > self.passing or (method == "POST" and "uploadId=" in path)
        self.came |= held
        return (0, "") if held else None


def parts(place: Place) -> list[int]:
    """The number of parts of every unfinished upload."""
    found = place.client.list_multipart_uploads(Bucket=place.bucket).get("Uploads", [])
    where = [{"Bucket": place.bucket, "Key": each["Key"], "UploadId": each["UploadId"]} for each in found]
    return [len(place.client.list_parts(**each).get("Parts", [])) for each in where]


@pytest.mark.parametrize(
    "stored",
    [pytest.param(0, marks=pytest.mark.heavy), 2, pytest.param(PARTS, marks=pytest.mark.heavy)],
)
async def test_an_upload_killed_among_its_parts(place: Place, server: str, tmp_path: Path, stored: int) -> None:
    store, held_back = place.store(part_bytes=PART_BYTES), HeldBack(stored)
    await store.commit(KEY, stage_step(tmp_path / KEY.run, 1))
    checkpoint, context = large(tmp_path, 2), multiprocessing.get_context("forkserver")
    with proxy(server, Spoil(answer=held_back)) as address:
        options: Any = place.options.model_copy(update={"endpoint_url": address, "part_bytes": PART_BYTES})
        process = context.Process(target=victim, args=(options, checkpoint))
        process.start()
        try:
            await until(
                lambda: held_back.came and parts(place) == [stored],
                f"an upload of which {stored} of {PARTS} parts are stored",
            )
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    assert [entry.step for entry in await store.list(KEY)] == [1]
    assert [key for key in place.objects if "large" in key] == []
    if "ART_TEST_S3" in os.environ:  # moto says of every upload that it was begun in 2010
        await store.sweep(KEY, 3600.0)
        assert parts(place) == [stored]
    assert await store.sweep(KEY, 0.0) >= 1
    assert parts(place) == []
    await store.commit(KEY, checkpoint)
    assert [entry.step for entry in await store.list(KEY)] == [1, 2]
    assert verify((await store.fetch(KEY, 2, tmp_path / "fetched")).directory) == checkpoint.manifest
