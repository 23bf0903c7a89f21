"""Reading tensors that may have been tampered with: safetensors only, and each checked before any is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from art_core.errors import CheckpointCorruptError

_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_HEADER_LIMIT_BYTES = 16 << 20


def refuse_pickles(directory: Path) -> None:
    """Refuse a directory that holds weights as a pickle, which may run any code when it is read.

    Raises:
        CheckpointCorruptError: It names the file, or says that the directory can't be read.
    """
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    except OSError as error:
        raise _corrupt(f"checkpoint {directory} can't be read: {error.strerror}") from error
    if names:
        raise _corrupt(f"checkpoint {directory} holds {names[0]}, a pickle; only safetensors files are read")


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Content of a regular file.

    Args:
        path: The file; its last part must not be a link.
        limit_bytes: More than this is no file of ours.

    Raises:
        CheckpointCorruptError: It is absent, a link, no file, or too large.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _corrupt(f"{path.name} in {path.parent} can't be opened as a regular file: {error.strerror}") from error
    with open(fd, "rb") as file:  # noqa: PTH123 - the descriptor was opened without following links
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            raise _corrupt(
                f"{path.name} in {path.parent} is not a regular file of at most {limit_bytes} bytes "
                f"(mode {stat.filemode(status.st_mode)}, {status.st_size} bytes)"
            )
        return file.read()


def read_tensors(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file, which must be exactly the expected ones.

    Args:
        path: The file.
        like: Expected name to a tensor of the expected shape and dtype.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        CheckpointCorruptError: Not safetensors, or a tensor is missing, unexpected, of another shape or dtype, or
            not finite; names the file and the tensor.
    """
    data = read_bytes(path, sum(tensor.nbytes for tensor in like.values()) + _HEADER_LIMIT_BYTES)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise _corrupt(f"{path.name} in {path.parent} is not a safetensors file: {error}") from error
    for name in sorted(like.keys() | tensors.keys()):
        if name not in tensors or name not in like:
            fault = "is missing" if name in like else "is not expected"
            raise _corrupt(f"{path.name}: tensor {name!r} {fault}; the base model and LoRA shape may be others")
        seen, wanted = tensors[name], like[name]
        if seen.shape != wanted.shape or seen.dtype != wanted.dtype:
            raise _corrupt(
                f"{path.name}: tensor {name!r} is {seen.dtype}{list(seen.shape)}; "
                f"this base model and LoRA shape need {wanted.dtype}{list(wanted.shape)}"
            )
        if not torch.isfinite(seen).all():
            raise _corrupt(f"{path.name}: tensor {name!r} has a NaN or infinite value")
    return tensors


def _corrupt(message: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(message, stage="train")
