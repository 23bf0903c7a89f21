"""Forks: the same files under the same step number in a new run, or nothing at all."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_core.base_model import BaseIdentity, base_digest
from art_core.checkpoint import ADAPTER, MANIFEST, OPTIMIZER, Checkpoint, verify, write_manifest
from art_core.config import LoRAConfig
from art_core.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    RunLockedError,
    StoreError,
)
from art_core.fork import ForkSource, ForkTarget, fork_checkpoint
from art_core.local_store import LocalStore
from art_core.run import RunDirectory
from art_core.testing.adapter import DAMAGES, AdapterShape, edit_config, edit_tensors, write_adapter
from tests.staged import BASE, stage_step

store = LocalStore()


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """A root with project ``p``, run ``old``, steps 0, 1, 2 and 5."""
    run = RunDirectory.create_or_open(tmp_path, "p", "old", "tiny", LoRAConfig())
    for step in (0, 1, 2, 5):
        await store.commit(run.path, stage_step(run.path, step))
    run.close()
    return tmp_path


def source(root: Path, **changes: Any) -> ForkSource:
    return ForkSource(**{"root": root, "project": "p", "run": "old", **changes})


def target(root: Path, **changes: Any) -> ForkTarget:
    given = {"root": root, "project": "p", "run": "new", "base_model": "tiny", "resolved_model": "tiny"}
    return ForkTarget(**{**given, "lora": LoRAConfig(), **changes})


def old_step(root: Path, step: int) -> Path:
    return root / "p/models/old/checkpoints" / f"{step:04d}"


def new_steps(root: Path) -> list[str]:
    """Everything below the new run's checkpoints, what starts with a dot included."""
    checkpoints = root / "p/models/new/checkpoints"
    return sorted(path.name for path in checkpoints.iterdir()) if checkpoints.exists() else []


def describe_again(directory: Path, base: BaseIdentity = BASE) -> Checkpoint:
    """Write the manifest that fits the files."""
    manifest = (directory / MANIFEST).read_bytes()
    (directory / MANIFEST).unlink()
    try:
        return write_manifest(directory, run="old", step=5, base_model=base)
    except CheckpointError:
        (directory / MANIFEST).write_bytes(manifest)
        raise


@pytest.mark.parametrize(("limit", "step"), [(None, 5), (5, 5), (4, 2), (1, 1), (0, 0)])
async def test_the_newest_step_up_to_the_limit_is_copied_under_its_number(root: Path, limit: int, step: int) -> None:
    before = {path: path.read_bytes() for path in old_step(root, step).iterdir()}
    forked = await fork_checkpoint(store, source(root, not_after_step=limit), target(root))
    assert new_steps(root) == [f"{step:04d}"]
    manifest = verify(forked.directory)
    original = verify(old_step(root, step))
    assert (manifest.run, manifest.step, manifest.parent, manifest.origin) == ("new", step, None, f"p/old@{step}")
    assert manifest.files == original.files
    assert (manifest.metrics, manifest.versions, manifest.base_model) == (
        original.metrics,
        original.versions,
        original.base_model,
    )
    assert {path: path.read_bytes() for path in old_step(root, step).iterdir()} == before
    assert [each.step for each in await store.list(root / "p/models/new")] == [step]
    RunDirectory.create_or_open(root, "p", "new", "tiny", LoRAConfig()).close()  # the lock is free


async def test_from_another_root_and_project_while_the_source_is_held(root: Path, tmp_path: Path) -> None:
    holder = RunDirectory.create_or_open(root, "p", "old", "tiny", LoRAConfig())
    elsewhere = target(tmp_path / "elsewhere", project="q")
    forked = await fork_checkpoint(store, source(root), elsewhere)
    assert forked.directory == tmp_path / "elsewhere/q/models/new/checkpoints/0005"
    assert forked.manifest.origin == "p/old@5"
    holder.close()


async def test_a_step_whose_optimizer_was_dropped(root: Path) -> None:
    """The fork never had one: its trainer begins with a fresh optimizer."""
    assert await store.drop_optimizer(root / "p/models/old", [5]) == [5]
    forked = await fork_checkpoint(store, source(root), target(root))
    assert verify(forked.directory).files.keys() == verify(old_step(root, 5)).files.keys() - {OPTIMIZER}
    assert [each.step for each in await store.list(root / "p/models/new")] == [5]


class TestRefused:
    """Nothing of the new run's checkpoints is written."""

    async def refuse(self, root: Path, error: type[Exception], match: str, **given: Any) -> None:
        of_source = {key: given.pop(key) for key in list(given) if key in ("not_after_step", "from_run", "project")}
        of_source = {"run" if key == "from_run" else key: value for key, value in of_source.items()}
        with pytest.raises(error, match=match):
            await fork_checkpoint(store, source(root, **of_source), target(root, **given))
        assert new_steps(root) == []

    async def test_no_such_step_or_run(self, root: Path) -> None:
        await self.refuse(root, CheckpointNotFoundError, "has no checkpoint; its steps: none", from_run="odl")
        for path in old_step(root, 0).iterdir():
            path.unlink()
        old_step(root, 0).rmdir()
        match = "has no checkpoint up to step 0; its steps: 1, 2, 5"
        await self.refuse(root, CheckpointNotFoundError, match, not_after_step=0)

    @pytest.mark.parametrize("name", ["../old", "a/b", ".hidden", ""])
    async def test_names_that_lead_elsewhere(self, root: Path, name: str) -> None:
        await self.refuse(root, ConfigError, "name is .*; allowed: 1 to 255 bytes", from_run=name)

    async def test_another_base_model_or_shape_names_both(self, root: Path) -> None:
        match = "run 'old' was made with base model 'tiny', this model has 'large'; give the model the same"
        await self.refuse(root, ConfigError, match, base_model="large", resolved_model="large")
        for lora, match in (
            (LoRAConfig(rank=4), "LoRA rank 8, this model has 4"),
            (LoRAConfig(alpha=1), "LoRA alpha 16.0, this model has 1"),
            (LoRAConfig(target_modules=["q_proj"]), r"LoRA target modules None, this model has \['q_proj'\]"),
        ):
            await self.refuse(root, ConfigError, match, lora=lora)

    async def test_local_base_models_are_compared_by_content(self, root: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        match = f"base model digest '{BASE.digest}', this model has '{base_digest(model)}'"
        await self.refuse(root, ConfigError, match, base_model=str(model), resolved_model=str(model))

    async def test_a_run_that_has_steps(self, root: Path) -> None:
        await fork_checkpoint(store, source(root, not_after_step=1), target(root))
        with pytest.raises(ConfigError, match=r"run 'new' has steps already \(newest: 1\)"):
            await fork_checkpoint(store, source(root), target(root))
        assert new_steps(root) == ["0001"]

    async def test_a_run_that_is_held(self, root: Path) -> None:
        holder = RunDirectory.create_or_open(root, "p", "new", "tiny", LoRAConfig())
        await self.refuse(root, RunLockedError, "run 'new' is held by process")
        holder.close()

    async def test_a_source_that_is_no_run_of_ours(self, root: Path) -> None:
        (root / "p/models/old/run.json").write_text('{"run": "old"}')
        await self.refuse(root, StoreError, "run.json is damaged")

    async def test_a_changed_byte(self, root: Path) -> None:
        path = old_step(root, 5) / ADAPTER
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        await self.refuse(root, CheckpointCorruptError, f"{ADAPTER} has .* bytes, sha256")

    async def test_a_link_in_place_of_a_file(self, root: Path, tmp_path: Path) -> None:
        """The store leaves that step out, and the newest whole one would be another than the one asked for."""
        path = old_step(root, 5) / ADAPTER
        (tmp_path / "secret").write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        forked = await fork_checkpoint(store, source(root), target(root))
        assert forked.step == 2

    async def test_a_pickle_under_a_safe_name(self, root: Path) -> None:
        directory = old_step(root, 5)
        (directory / ADAPTER).write_bytes(pickle.dumps({"weight": [0.0] * 100}))
        describe_again(directory)
        await self.refuse(
            root, CheckpointCorruptError, "run 'old' step 5 can't be forked: .*header.*; fork another step"
        )

    async def test_a_pickle_under_its_own_name(self, root: Path) -> None:
        directory = old_step(root, 5)
        manifest = json.loads((directory / MANIFEST).read_text())
        (directory / "adapter_model.bin").write_bytes(b"x")
        manifest["files"]["adapter_model.bin"] = {"size_bytes": 1, "sha256": "0" * 64}
        (directory / MANIFEST).write_text(json.dumps(manifest))
        forked = await fork_checkpoint(store, source(root), target(root))
        assert forked.step == 2, "a manifest that names a pickle is no manifest"

    async def test_an_optimizer_that_is_no_safetensors(self, root: Path) -> None:
        directory = old_step(root, 5)
        (directory / OPTIMIZER).write_bytes(pickle.dumps({"step": 1}))
        describe_again(directory)
        await self.refuse(root, CheckpointCorruptError, f"{OPTIMIZER} is no safetensors file")

    @pytest.mark.parametrize("damage", [*DAMAGES, "another scale"])
    async def test_a_hostile_adapter_under_a_manifest_that_fits_it(
        self, tiny_model: Path, tmp_path: Path, damage: str
    ) -> None:
        """Whoever wrote the files wrote the manifest too. Nothing of the new run is there afterwards."""
        given = {"base_model": str(tiny_model), "resolved_model": str(tiny_model)}
        run = RunDirectory.create_or_open(tmp_path, "p", "old", str(tiny_model), LoRAConfig())
        checkpoint = stage_step(run.path, 5)
        write_adapter(tiny_model, checkpoint.directory, AdapterShape(rank=8, alpha=16.0))
        identity = BaseIdentity(name=str(tiny_model), digest=base_digest(tiny_model))
        await store.commit(run.path, describe_again(checkpoint.directory, identity))
        run.close()
        await fork_checkpoint(store, source(tmp_path), target(tmp_path, run="sound", **given))
        damages = {**DAMAGES, "another scale": lambda directory: edit_config(directory, lora_alpha=1000.0)}
        damages[damage](old_step(tmp_path, 5))
        with suppress(CheckpointError):  # what no manifest can name stays under the old one
            describe_again(old_step(tmp_path, 5), identity)
        with pytest.raises((CheckpointCorruptError, CheckpointNotFoundError)):
            await fork_checkpoint(store, source(tmp_path), target(tmp_path, **given))
        assert not (tmp_path / "p/models/new").exists()

    async def test_without_the_base_at_hand_values_and_ranks_are_checked(self, root: Path) -> None:
        edit_tensors(old_step(root, 5), lambda tensors: tensors[min(tensors)].fill(np.nan))
        describe_again(old_step(root, 5))
        await self.refuse(root, CheckpointCorruptError, "holds values that are not finite")

    async def test_a_copy_that_fails_half_way(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def full(self: LocalStore, run: Path, checkpoint: Checkpoint) -> None:
            raise StoreError("can't commit: no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "commit", full)
            await self.refuse(root, StoreError, "no space left")
        assert (await fork_checkpoint(store, source(root), target(root))).step == 5
