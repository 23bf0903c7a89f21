"""Reading tensors that may have been tampered with: safetensors only, and each checked before any is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from art_core.adapter_file import RawTensor, read_bytes
from art_core.errors import CheckpointCorruptError
from art_core.file_record import open_regular

_HEADER_LIMIT_BYTES = 16 << 20
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def as_tensor(raw: RawTensor) -> Tensor:
    """A tensor of an adapter's file, on the CPU; it shares the memory."""
    return torch.frombuffer(raw.data, dtype=_DTYPES[raw.dtype]).view(raw.shape)


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


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; no tensor is read.

    Raises:
        CheckpointCorruptError: Not safetensors.
    """
    with open_regular(path) as (file, size):
        header_bytes = int.from_bytes(file.read(8), "little")
        data = file.read(header_bytes) if header_bytes <= min(_HEADER_LIMIT_BYTES, size) else b""
    try:
        return dict(json.loads(data).get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise _corrupt(f"{path.name} in {path.parent} is not a safetensors file: {error}") from error


def _corrupt(message: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(message, stage="train")
