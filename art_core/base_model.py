"""Which base model a part holds, whether two parts hold the same one, and what it can't be served with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from art_core.errors import ConfigError

_SAMPLE_BYTES = 1 << 20
_PINNED = {"config.json", "tokenizer.json"}

UNKNOWN_DIGEST = "unknown"
"""In the manifest of a checkpoint whose writer did not say what its base model's files were."""


class BaseIdentity(BaseModel):
    """The base model's name and what pins its content."""

    model_config = ConfigDict(frozen=True)
    name: str
    """As engine or trainer was told: a hub name, or the local directory that the user's name stands for. In a manifest
    the user's name itself."""
    digest: str
    """`base_digest` of its files."""


@dataclass(frozen=True)
class ModelInfo:
    """What an engine or a trainer says about the base model it loaded."""

    identity: BaseIdentity
    vocab_size: int
    """Token ids are in [0, vocab_size)."""
    context_tokens: int
    """Longest sequence, prompt and completion together."""
    chat_template: str | None
    """The Jinja template in force, None where the model has none."""
    dtype: str
    """Compute type of the base weights, e.g. ``"float32"``."""
    files_seen: bool = True
    """Whether who says this has seen the files that `identity` digests. False for a server that somebody else runs, out
    of sight: then its answers are held against the trainer's."""


def base_digest(directory: Path) -> str:
    """Digest that tells base models apart without reading tens of gigabytes.

    Covers ``config.json``, ``tokenizer.json`` and every ``*.safetensors`` file, which say what is computed and what a
    token means: name, size, and its first and last MiB (which holds the whole safetensors header of all but the
    largest shards). It does not notice a change that keeps a weight file's size and both of its ends. Defaults of
    sampling and the chat template may change under a run, so their files don't count.

    Args:
        directory: The model's local directory.

    Returns:
        Hex sha256.
    """
    total = hashlib.sha256()
    files = sorted(p for p in directory.iterdir() if p.suffix == ".safetensors" or p.name in _PINNED)
    for path in files:
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            total.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            total.update(file.read(_SAMPLE_BYTES))
    return total.hexdigest()


def local_directory(name: str) -> Path | None:
    """The directory that a base model's name means; None for what may be a hub name.

    Args:
        name: As the user gave it.

    Raises:
        ConfigError: It is a directory that holds no model, or looks like a path and no directory is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"base model {name!r} is a directory without config.json; give one that holds a model")
        return path.absolute()
    if path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"base model {name!r} looks like a path, but no directory is there; give a local directory")
    return None


def require_shape(directory: Path, tensor_parallel_size: int, max_model_len: int | None) -> None:
    """Refuse what a base model can't be served with, before anything is launched.

    Args:
        directory: The model's local directory.
        tensor_parallel_size: Devices that share it.
        max_model_len: Longest sequence wanted, tokens; None: the model's own context.

    Raises:
        ConfigError: The devices can't share its attention heads, or its context is shorter.
    """
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    heads = text.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor_parallel_size:
        fits = ", ".join(str(each) for each in range(1, heads + 1) if heads % each == 0)
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel_size}, which does not divide the base model's {heads} attention "
            f"heads; allowed: {fits}"
        )
    context = text.get("max_position_embeddings")
    if isinstance(context, int) and max_model_len is not None and max_model_len > context:
        raise ConfigError(
            f"max_model_len is {max_model_len}; allowed: 8 to {context}, the context of {str(directory)!r}"
        )


def require_same_base(engine: ModelInfo, trainer: ModelInfo) -> None:
    """Refuse to run an engine and a trainer that hold different base models.

    Args:
        engine: What the engine loaded.
        trainer: What the trainer loaded.

    Raises:
        ConfigError: Digest, vocabulary or chat template differ; both values are named.
    """
    for what, a, b in (
        ("base model digest", engine.identity.digest, trainer.identity.digest),
        ("vocabulary size", engine.vocab_size, trainer.vocab_size),
        ("chat template", engine.chat_template, trainer.chat_template),
    ):
        if a != b:
            raise ConfigError(
                f"engine and trainer disagree about the {what}: engine {_short(a)}, trainer {_short(b)} "
                f"(base model {engine.identity.name!r} and {trainer.identity.name!r}); give both the same one"
            )


def require_trained_on(trained: BaseIdentity, held: ModelInfo, step: int) -> None:
    """Refuse to go on from a step that was trained on another base model.

    Args:
        trained: Which one its manifest names.
        held: Which one is loaded now.
        step: The step.

    Raises:
        ConfigError: Their digests differ; both are named.
    """
    if trained.digest not in (UNKNOWN_DIGEST, held.identity.digest):
        raise ConfigError(
            f"step {step} was trained on another base model: {trained.name!r} with digest {_short(trained.digest)}, "
            f"now {held.identity.name!r} has {_short(held.identity.digest)}; give the one it was trained on, or choose "
            f"another run name"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"
