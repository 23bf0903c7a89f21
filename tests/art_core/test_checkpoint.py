"""The manifest says exactly which bytes a checkpoint is; every other byte is noticed and named."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from art_core.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    DROPPED,
    MANIFEST,
    OPTIMIZER,
    PROBE,
    Manifest,
    StoredCheckpoint,
    check_layout,
    manifest_bytes,
    read_manifest,
    verify,
    write_manifest,
)
from art_core.errors import CheckpointCorruptError, CheckpointError, StoreError
from tests.staged import BASE, stage_step, write_step_files


@pytest.fixture
def step(tmp_path: Path) -> Path:
    return stage_step(tmp_path / "run", 7).directory


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_manifest_describes_what_is_staged(step: Path) -> None:
    manifest = verify(step)
    assert set(manifest.files) == {ADAPTER, ADAPTER_CONFIG, OPTIMIZER, PROBE}
    assert manifest.files[ADAPTER].size_bytes == (step / ADAPTER).stat().st_size
    assert (manifest.run, manifest.step, manifest.parent, manifest.base_model) == ("run", 7, 6, BASE)
    assert (step / MANIFEST).read_bytes() == manifest_bytes(manifest)
    assert StoredCheckpoint(step, manifest).probe() is not None


def test_writing_it_again_gives_the_same_bytes(step: Path) -> None:
    before = (step / MANIFEST).read_bytes()
    manifest = read_manifest(step)
    again = write_manifest(
        step, run="run", step=7, base_model=BASE, parent=6, metrics=manifest.metrics, versions=manifest.versions
    )
    assert (step / MANIFEST).read_bytes() == before
    assert again.manifest == manifest


@pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG, OPTIMIZER, PROBE])
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: flip(path, 0),
        lambda path: flip(path, -1),
        lambda path: flip(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.unlink(),
        lambda path: (path.rename(path.parent.parent / "kept"), path.symlink_to(path.parent.parent / "kept")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["first", "last", "middle", "short", "empty", "longer", "missing", "link", "directory", "pipe"],
)
def test_every_harm_to_a_file_is_named(step: Path, name: str, harm: Callable[[Path], object]) -> None:
    manifest = read_manifest(step)
    harm(step / name)
    for names in (None, [name]):
        with pytest.raises(CheckpointCorruptError, match=f"{name} (has|is)"):
            verify(step, manifest, names)
    others = [other for other in manifest.files if other != name]
    assert verify(step, manifest, others) == manifest


def test_swapped_files_are_noticed(step: Path) -> None:
    shutil.copy(step / ADAPTER, step / "a")
    (step / OPTIMIZER).replace(step / ADAPTER)
    (step / "a").replace(step / OPTIMIZER)
    check_layout(step, read_manifest(step))
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        verify(step)


@pytest.mark.parametrize("name", ["extra.safetensors", "extra.pkl", ".hidden"])
def test_an_extra_file_is_noticed(step: Path, name: str) -> None:
    (step / name).touch()
    with pytest.raises(CheckpointCorruptError, match=f"{name} is not in the manifest"):
        verify(step)
    verify(step, names=[ADAPTER])


def test_a_name_outside_the_manifest_can_not_be_verified(step: Path) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"other.json is not in the manifest"):
        verify(step, names=["other.json"])


def test_the_manifest_of_another_step_is_noticed(step: Path, tmp_path: Path) -> None:
    manifest = read_manifest(step)
    other = stage_step(tmp_path / "run", 8, seed=7)
    shutil.copy(other.directory / MANIFEST, step / MANIFEST)
    verify(step)
    with pytest.raises(CheckpointCorruptError, match=r"manifest.json is of 'run' step 8"):
        verify(step, manifest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ("{}", "run: Field required"),
        ("x" * ((4 << 20) + 1), "has 4194305 bytes; allowed: 4194304"),
    ],
)
def test_a_bad_manifest_is_refused(step: Path, text: str, reason: str) -> None:
    (step / MANIFEST).write_text(text)
    with pytest.raises(CheckpointCorruptError, match=rf"manifest.json .*{reason}"):
        verify(step)


def test_every_byte_of_the_manifest_counts(step: Path) -> None:
    """No flipped bit of the manifest passes, also where nobody knows what was written."""
    for at in range((step / MANIFEST).stat().st_size):
        flip(step / MANIFEST, at)
        with pytest.raises(CheckpointCorruptError, match=MANIFEST):
            read_manifest(step)
        flip(step / MANIFEST, at)
    assert read_manifest(step).step == verify(step).step


def test_a_manifest_without_a_digest_of_itself_is_believed(step: Path) -> None:
    manifest = read_manifest(step)
    (step / MANIFEST).write_text(manifest.model_dump_json())
    assert verify(step) == manifest


def test_a_missing_or_special_manifest_is_refused(step: Path) -> None:
    (step / MANIFEST).rename(step.parent / "kept")
    with pytest.raises(CheckpointCorruptError, match="is missing"):
        verify(step)
    (step / MANIFEST).symlink_to(step.parent / "kept")
    with pytest.raises(CheckpointCorruptError, match="is not a regular file"):
        verify(step)
    with pytest.raises(CheckpointCorruptError, match="is missing"):
        verify(step / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        *("../x.json", "/etc/x.json", "a/b.json", "..", ".", "", "a\\b.json", "a\0.json", ".x.json", MANIFEST),
        *("x.bin", "x.pt", "x.pkl", "x", "x" * 300 + ".json"),
    ],
)
def test_a_manifest_that_names_other_places_or_kinds_is_refused(step: Path, name: str) -> None:
    data = read_manifest(step).model_dump()
    data["files"][name] = data["files"][ADAPTER]
    (step / MANIFEST).write_bytes(Manifest.model_construct(**data).model_dump_json(warnings=False).encode())
    with pytest.raises(CheckpointCorruptError, match="not allowed"):
        verify(step)


@pytest.mark.parametrize("name", ["optimizer.bin", "optimizer.pt", "adapter.pkl", "training_args", ".x.json"])
def test_a_kind_that_is_not_allowed_can_not_be_staged(tmp_path: Path, name: str) -> None:
    write_step_files(tmp_path, 0)
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(CheckpointError, match=f"{name}.* not allowed"):
        write_manifest(tmp_path, run="run", step=0, base_model=BASE)
    assert not (tmp_path / MANIFEST).exists()


def test_only_regular_files_can_be_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step_files(tmp_path, 0)
    odd = tmp_path / "odd.json"
    odd.symlink_to(tmp_path / ADAPTER)
    with pytest.raises(CheckpointCorruptError, match=r"odd.json is not a regular file"):
        write_manifest(tmp_path, run="run", step=0, base_model=BASE)
    odd.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket path must be short
        server.bind("odd.json")
        with pytest.raises(CheckpointCorruptError, match=r"odd.json is not a regular file"):
            write_manifest(tmp_path, run="run", step=0, base_model=BASE)


def test_a_step_whose_optimizer_is_dropped_while_one_looks_is_whole(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    @contextmanager
    def dropping(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            seen = list(entries)
        if (step / OPTIMIZER).exists():
            (step / (OPTIMIZER + DROPPED)).touch()
            (step / OPTIMIZER).unlink()
        yield iter(seen)

    manifest = read_manifest(step)
    monkeypatch.setattr(os, "scandir", dropping)
    assert sorted(check_layout(step, manifest)) == sorted({*manifest.files} - {OPTIMIZER})


@pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG])
def test_a_manifest_without_an_adapter_is_none(step: Path, name: str) -> None:
    data = json.loads((step / MANIFEST).read_text())
    del data["files"][name], data["manifest_sha256"]
    (step / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointCorruptError, match=f"{name} must be among them"):
        read_manifest(step)


def test_a_metric_must_be_finite(tmp_path: Path) -> None:
    write_step_files(tmp_path, 0)
    with pytest.raises(CheckpointError, match=r"metrics.loss: .*finite"):
        write_manifest(tmp_path, run="run", step=0, base_model=BASE, metrics={"loss": float("nan")})


def test_a_directory_that_can_not_be_read_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"can't write the manifest of step 0: .*nowhere: No such file"):
        write_manifest(tmp_path / "nowhere", run="run", step=0, base_model=BASE)
