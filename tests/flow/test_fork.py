"""Forks before and after registering, out of every place, and runs that openpipe-art's backend left: what is served."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import art
from art.local import LocalBackend
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, OPTIMIZER, PROBE, verify
from art_core.cli.program import app
from art_core.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError
from art_core.file_store import FileStore
from art_core.policy import ProofKind
from art_core.testing.adapter import AdapterShape, edit_tensors, write_adapter
from tests.flow.agent import gather

LORA = {"rank": 4, "alpha": 8}


def model(name: str, base: Path, project: str = "p") -> art.TrainableModel:
    return art.TrainableModel(name=name, project=project, base_model=str(base), lora_config=dict(LORA))


def backend(root: Path, **options: Any) -> LocalBackend:
    return LocalBackend(path=root, engine="torch", trainer="torch", **options)


def differing() -> Callable[[str], float]:
    """Rewards that differ, whatever is said: each step must change the weights."""
    count = itertools.count()
    return lambda text: float(next(count))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(door: LocalBackend, of: art.TrainableModel) -> tuple[int, str]:
    """Step and adapter digest of what is served; the engine has proved that it holds these weights."""
    policy = door._session(of).backend.route.current().policy
    assert policy.proof.kind is ProofKind.WEIGHTS
    return policy.step, policy.stored.manifest.adapter_digest


async def says(of: art.TrainableModel) -> list[float]:
    """Logprobs of a few sampled tokens' alternatives, which another adapter answers otherwise."""
    completion = await of.openai_client().chat.completions.create(
        model=of.get_inference_name(),
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        temperature=0.0,
        logprobs=True,
        top_logprobs=3,
    )
    tokens = completion.choices[0].logprobs
    assert tokens is not None and tokens.content is not None
    return [each.logprob for token in tokens.content for each in token.top_logprobs]


@pytest.fixture(scope="module")
async def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A root whose run ``p/old`` has steps 0 to 2, copied to ``store`` beside it."""
    place = tmp_path_factory.mktemp("trained")
    async with backend(place / "root", store=(place / "store").as_uri(), durable="remote") as door:
        old = model("old", tiny_model)
        await old.register(door)
        groups = await gather(old, differing(), questions=["one"], runs=3)
        for _ in range(2):
            await door.train(old, groups, learning_rate=3e-3)
    return place / "root"


def checkpoint(root: Path, step: int, run: str = "old") -> Path:
    return root / "p/models" / run / "checkpoints" / f"{step:04d}"


async def test_what_is_forked_is_what_is_served_before_and_after_registering(trained: Path, tiny_model: Path) -> None:
    wanted = digest(checkpoint(trained, 1) / ADAPTER)
    assert len({digest(checkpoint(trained, step) / ADAPTER) for step in range(3)}) == 3
    async with backend(trained) as door:
        before, after = model("before", tiny_model), model("after", tiny_model)
        await door._experimental_fork_checkpoint(before, "old", not_after_step=1)
        await before.register(door)
        assert served(door, before) == (1, wanted)

        await after.register(door)
        fresh = await says(after)
        with pytest.raises(ConfigError, match="step 0 of run 'old' can't be forked into run 'after'"):
            await door._experimental_fork_checkpoint(after, "old", not_after_step=0)
        assert served(door, after)[0] == 0
        await door._experimental_fork_checkpoint(after, "old", not_after_step=1)
        assert served(door, after) == (1, wanted)
        assert after.get_inference_name() == "after@1"
        assert await says(after) == await says(before) != fresh

        groups = await gather(after, differing(), questions=["one"], runs=3)
        for each in (before, after):  # with the forked optimizer both make the same next step
            assert (await door.train(each, groups, learning_rate=3e-3)).step == 2
        assert served(door, before) == served(door, after)
        assert verify(checkpoint(trained, 1, "after")).origin == "p/old@1"

        with pytest.raises(ConfigError, match="whose newest step is 2; allowed once it is registered"):
            await door._experimental_fork_checkpoint(after, "old")
        assert await after.get_step() == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def swap(directory: Path, other: Path, name: str) -> None:
    """A file of another step, whole in itself and of the same size."""
    data = (other / name).read_bytes()
    assert len(data) == (directory / name).stat().st_size
    (directory / name).write_bytes(data)


@pytest.mark.heavy
async def test_a_damaged_step_is_not_forked_into_a_registered_model(
    trained: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Whatever byte it is, the file is named, nothing is left behind, and what was served is served as before."""
    damages = [(name, lambda of, name=name: flip(of / name)) for name in (ADAPTER, ADAPTER_CONFIG, OPTIMIZER, PROBE)]
    damages += [(name, lambda of, name=name: swap(of, of.with_name("0002"), name)) for name in (ADAPTER, OPTIMIZER)]
    new = model("registered", tiny_model)
    async with backend(tmp_path) as door:
        await new.register(door)
        before, said = served(door, new), await says(new)
        for number, (name, damage) in enumerate(damages):
            source = tmp_path / f"source {number}"
            shutil.copytree(trained / "p/models/old", source / "p/models/old")
            damage(checkpoint(source, 1))
            with pytest.raises(CheckpointCorruptError, match=rf"(?s)step 1 can't be forked: .*{name}"):
                await door._experimental_fork_checkpoint(new, "old", from_path=source, not_after_step=1)
            assert served(door, new) == before and await new.get_step() == 0
            assert [path.name for path in (tmp_path / "p/models/registered/checkpoints").iterdir()] == ["0000"]
        assert await says(new) == pytest.approx(said, abs=1e-4)
        await door._experimental_fork_checkpoint(new, "old", from_path=trained, not_after_step=1)
        assert served(door, new) == (1, digest(checkpoint(trained, 1) / ADAPTER))


async def fork(*arguments: str) -> Any:
    """The command's answer; it runs an event loop of its own."""
    given = ["checkpoints", "fork", *arguments, "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, app, given)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


async def test_the_command_forks_from_a_run_a_project_a_root_a_step_and_a_store(
    trained: Path, tiny_model: Path, tmp_path: Path
) -> None:
    here = ("--path", str(trained))
    store = ("--store", (trained.parent / "store").as_uri())
    elsewhere = ("--path", str(tmp_path / "elsewhere"))
    made = [
        (await fork("--from", "p/old", "--run", "q/newest", *here), 2),
        (await fork("--from", "p/old@1", "--run", "p/first", *here), 1),
        (await fork("--from", str(trained / "p/models/old"), "--run", "p/rooted", *elsewhere), 2),
        (await fork("--from", f"{trained / 'p/models/old'}@0", "--run", "p/zero", *elsewhere), 0),
        (await fork("--from", "p/old@1", "--run", "p/fetched", *store, *elsewhere), 1),
    ]
    for done, step in made:
        directory = Path(done["directory"])
        assert verify(directory).step == step == done["manifest"]["step"]
        assert done["manifest"]["origin"] == f"p/old@{step}"
        assert digest(directory / ADAPTER) == digest(checkpoint(trained, step) / ADAPTER)
    async with backend(tmp_path / "elsewhere") as door:
        fetched = model("fetched", tiny_model)
        await fetched.register(door)
        assert served(door, fetched) == (1, digest(checkpoint(trained, 1) / ADAPTER))
    for arguments, error, match in (
        (("--from", "p/old@7", "--run", "p/x"), CheckpointNotFoundError, "has no step 7; the newest before it is 2"),
        (("--from", "p/old@x", "--run", "p/x"), ConfigError, "the step after '@' is a number"),
        (("--from", "old", "--run", "p/x"), ConfigError, "give <project>/<run>"),
        (("--from", "p/old", "--run", "x"), ConfigError, "give <project>/<run>"),
        (("--from", "p/old", "--run", "p/first"), ConfigError, "has steps already"),
        (("--from", "p/old", "--run", "../x/y"), ConfigError, "project name is"),
    ):
        with pytest.raises(error, match=match):
            await fork(*arguments, *here)
    assert not (trained / "p/models/x").exists()


def write_reference_run(root: Path, base: Path, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """What openpipe-art's local backend leaves: PEFT's files as PEFT writes them, and the rest beside them."""
    run = root / "p/models/old"
    for number, seed in enumerate(seeds):
        directory = run / "checkpoints" / f"{number:04d}"
        directory.mkdir(parents=True)
        write_adapter(base, directory, AdapterShape(seed=seed, rank=4, alpha=8.0, strength=0.05))
        (directory / "README.md").write_text("---\nlibrary_name: peft\n---\n")
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "training_args.bin").write_bytes(b"\x80\x04 a pickle")
    for name in ("logs", "tensors", "trajectories/train"):
        (run / name).mkdir(parents=True)
    (run / "model.json").write_text(json.dumps({"name": "old", "project": "p", "base_model": str(base)}))
    (run / "history.jsonl").write_text('{"training_step": 1, "val/reward": 0.5}\n')
    (run / "state.json").write_text('{"_pipeline_trainer": {"training_step": 1}}')
    (run / "tensors" / "tokens.pt").write_bytes(b"\0" * 16)
    (run / "trajectories/train/0000.parquet").write_bytes(b"PAR1PAR1")
    (run / "logs" / "vllm-runtime.log").write_text("INFO\n")
    return run


def snapshot(run: Path) -> dict[str, Any]:
    """Every path with its times, mode and bytes."""
    seen = {}
    for path in [run, *sorted(run.rglob("*"))]:
        status = path.stat()
        content = digest(path) if path.is_file() else ""
        seen[str(path.relative_to(run))] = (status.st_mtime_ns, status.st_ctime_ns, status.st_mode, content)
    return seen


async def test_a_reference_run_is_adopted_served_and_trained_on_and_stays_as_it_is(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_reference_run(tmp_path, tiny_model)
    before, wanted = snapshot(run), digest(run / "checkpoints/0001" / ADAPTER)
    async with backend(tmp_path) as door:
        with pytest.raises(ConfigError, match=r"holds steps of openpipe-art's own backend \(newest: 1\)"):
            await model("old", tiny_model).register(door)
        new = model("new", tiny_model)
        await door._experimental_fork_checkpoint(new, from_model="old")
        said = " ".join(caplog.messages)
        assert "written by openpipe-art's own backend" in said and "they have no digests" in said
        assert f"base model, {str(tiny_model)!r}" in said and "optimizer's state was not kept" in said
        await new.register(door)
        assert served(door, new) == (1, wanted)
        groups = await gather(new, differing(), questions=["one"], runs=3)
        assert (await door.train(new, groups, learning_rate=1e-3)).step == 2

        late = model("late", tiny_model)
        await late.register(door)
        await door._experimental_fork_checkpoint(late, from_model="old")
        assert served(door, late) == (1, wanted)
    adopted = checkpoint(tmp_path, 1, "new")
    assert sorted(path.name for path in adopted.iterdir()) == [ADAPTER_CONFIG, ADAPTER, "manifest.json"]
    assert verify(adopted).origin == "p/old@1"
    assert (checkpoint(tmp_path, 2, "new") / OPTIMIZER).exists()
    done = await fork("--from", str(run), "--run", "p/by-hand", "--path", str(tmp_path / "other"))
    assert done["manifest"]["step"] == 1 and digest(Path(done["directory"]) / ADAPTER) == wanted
    assert snapshot(run) == before


def _truncate(directory: Path) -> None:
    os.truncate(directory / ADAPTER, 1000)


def _link(directory: Path) -> None:
    (directory / ADAPTER).rename(directory / "elsewhere")
    (directory / ADAPTER).symlink_to("elsewhere")


def _rank(directory: Path) -> None:
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    (directory / ADAPTER_CONFIG).write_text(json.dumps({**config, "r": 8}))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_truncate, CheckpointCorruptError),
        (lambda directory: (directory / ADAPTER).unlink(), CheckpointCorruptError),
        (lambda directory: (directory / ADAPTER_CONFIG).write_text("{}"), CheckpointCorruptError),
        (lambda directory: edit_tensors(directory, lambda each: each[min(each)].fill(np.nan)), CheckpointCorruptError),
        (lambda directory: save_file({"x": np.zeros(3, np.float32)}, directory / ADAPTER), CheckpointCorruptError),
        (_link, CheckpointCorruptError),
        (_rank, ConfigError),
    ],
)
async def test_a_reference_step_that_is_torn_or_hostile_is_refused(
    tmp_path: Path, tiny_model: Path, damage: Any, error: type[Exception]
) -> None:
    run = write_reference_run(tmp_path, tiny_model)
    damage(run / "checkpoints/0001")
    before = snapshot(run)
    door = backend(tmp_path)
    with pytest.raises(error):
        await door._experimental_fork_checkpoint(model("new", tiny_model), from_model="old")
    assert not (tmp_path / "p/models/new").exists()
    await door._experimental_fork_checkpoint(model("new", tiny_model), from_model="old", not_after_step=0)
    assert verify(checkpoint(tmp_path, 0, "new")).origin == "p/old@0"
    done = await fork("--from", f"{run}@0", "--run", "p/by-hand", "--path", str(tmp_path))
    assert verify(Path(done["directory"])).origin == "p/old@0"
    assert snapshot(run) == before
    assert await FileStore(tmp_path).runs()


UNSLOTH = {
    "base_model_name_or_path": "unsloth/tiny-bnb-4bit",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    "target_modules": "(?:.*?(?:layers).*?(?:self_attn|mlp).*?(?:[qkvo]_proj|(?:gate|up|down)_proj).*?)",
    "loftq_config": {},
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "exclude_modules": None,
    "megatron_core": "megatron.core",
    "trainable_token_indices": None,
    "lora_bias": False,
    "init_lora_weights": True,
}
"""What its trainer's library writes besides; the modules as one pattern, the base as the library calls it."""


async def test_odd_things_in_a_reference_run_are_passed_over(tmp_path: Path, tiny_model: Path) -> None:
    """Tokenizers, pickles and directories beside an adapter, saves cut short at once, links, names without zeros."""
    run = write_reference_run(tmp_path / "theirs", tiny_model, (1, 2, 3))
    checkpoints = run / "checkpoints"
    for directory in checkpoints.iterdir():
        for name in ("tokenizer.json", "special_tokens_map.json", "merges.txt", "chat_template.jinja", "optimizer.pt"):
            (directory / name).write_bytes(b"\x80\x04{}")
        (directory / "global_step1").mkdir()
        config = json.loads((directory / ADAPTER_CONFIG).read_text())
        (directory / ADAPTER_CONFIG).write_text(json.dumps(config | UNSLOTH))
    edit_tensors(checkpoints / "0000", lambda each: [each[name].fill(0) for name in each if "lora_B" in name])
    (checkpoints / "0002").rename(checkpoints / "7")
    for name in ("0008", ".cache", "\u0669"):
        (checkpoints / name).mkdir()
    (checkpoints / "notes.txt").write_text("9")
    (checkpoints / "latest").symlink_to("0001")
    shutil.copytree(checkpoints / "0001", tmp_path / "outside")
    (checkpoints / "0009").symlink_to(tmp_path / "outside")
    (checkpoints / "01").mkdir()  # the same number, and nothing of use
    (checkpoints / "01" / ADAPTER).touch()
    before = snapshot(run)
    options = ("--path", str(tmp_path / "ours"), "--base-model", str(tiny_model))
    for asked, step in (("", 7), ("@1", 1), ("@0", 0)):
        done = await fork("--from", f"{run}{asked}", "--run", f"p/from-{step}", *options)
        assert verify(Path(done["directory"])).origin == f"p/old@{step}"
        assert sorted(done["manifest"]["files"]) == [ADAPTER_CONFIG, ADAPTER]
    with pytest.raises(CheckpointNotFoundError, match="has no step 8; its steps: 0, 1, 7"):
        await fork("--from", f"{run}@8", "--run", "p/none", *options)
    assert snapshot(run) == before
    (checkpoints / "7" / ADAPTER_CONFIG).write_text(json.dumps(config | {"target_modules": ["q_proj", 1]}))
    with pytest.raises(CheckpointCorruptError, match=r"step 7 of .* target_modules holds what is no name"):
        await fork("--from", str(run), "--run", "p/none", *options)
