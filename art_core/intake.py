"""A checkpoint from elsewhere, looked at before it is taken in: its arrays are arrays, its adapter fits the base model.

A header is read with bounds and data is mapped, so a hostile file costs neither memory nor a crash.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from art_core.adapter_file import adaptable_modules, read_adapter
from art_core.checkpoint import ADAPTER_CONFIG, Checkpoint
from art_core.config import LoRAConfig
from art_core.errors import CheckpointCorruptError
from art_core.file_record import open_regular

HEADER_LIMIT_BYTES = 16 << 20

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
_EXPONENT_F64 = 0x7FF0000000000000
_CHUNK_ITEMS = 1 << 20


def require_adapter(directory: Path, base_model: str, lora: LoRAConfig) -> None:
    """Check that an adapter is finite, of the shape that its run was made with, and one of the base model's.

    Args:
        directory: The checkpoint.
        base_model: Its local directory; a hub's name is not at hand, and engine and trainer compare the modules then.
        lora: What the run was made with.

    Raises:
        CheckpointCorruptError: Names the file or tensor and what is wrong with it.
    """
    base = Path(base_model)
    sites = adaptable_modules(base) if base.is_dir() else {}
    adapter = read_adapter(directory, sites or None, lora.rank)
    if (adapter.rank, adapter.scale) != (lora.rank, lora.alpha / lora.rank):
        raise CheckpointCorruptError(
            f"{ADAPTER_CONFIG} has rank {adapter.rank} and scale {adapter.scale:g}; its run was made with rank "
            f"{lora.rank} and scale {lora.alpha / lora.rank:g}"
        )


def require_arrays(checkpoint: Checkpoint) -> None:
    """Check every array file of a checkpoint that is not known to come from a trainer of ours.

    Args:
        checkpoint: Its files; what was dropped on purpose is passed over.

    Raises:
        CheckpointCorruptError: A file is no safetensors file, or holds a value that is not finite; it is named.
        StoreError: The system refuses to read it.
    """
    for name in checkpoint.manifest.files:
        path = checkpoint.directory / name
        if path.suffix == ".safetensors" and path.exists():
            _require_arrays(path)


def _require_arrays(path: Path) -> None:
    with open_regular(path) as (file, size):
        claimed = int.from_bytes(file.read(8), "little")
        if size < 8 or claimed > min(HEADER_LIMIT_BYTES, size - 8):
            raise _refused(path, f"its header claims {claimed} bytes of {size}; allowed: {HEADER_LIMIT_BYTES}")
        try:
            header = json.loads(file.read(claimed))
        except (ValueError, RecursionError) as error:
            raise _refused(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _refused(path, f"its header is a JSON {type(header).__name__}")
    start = 8 + claimed
    data = np.memmap(path, np.uint8, "r", start) if size > start else np.empty(0, np.uint8)
    end = 0
    for name, entry in sorted(header.items(), key=_begin):
        if name != "__metadata__":
            end = _require_array(path, name, entry, data, end)
    if end != len(data):
        raise _refused(path, f"its arrays cover {end} of {len(data)} bytes")


def _require_array(path: Path, name: str, entry: Any, data: np.ndarray, begin: int) -> int:
    """Check one array; returns where the next one begins, for they follow one another without a gap."""
    try:
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        expected = begin, begin + math.prod(shape) * _ITEM_BYTES[kind]
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"array {name!r} is described as {str(entry)[:80]!r}") from error
    if (first, last) != expected or last > len(data) or min(shape, default=0) < 0:
        raise _refused(path, f"array {name!r} lies at {first}:{last}; its shape and type need {expected}")
    if not _finite(data[first:last], kind):
        raise _refused(path, f"array {name!r} holds values that are not finite")
    return int(last)


def _finite(data: np.ndarray, kind: str) -> bool:
    unsigned, exponent = _EXPONENTS.get(kind, ("<u8", _EXPONENT_F64))
    if kind not in (*_EXPONENTS, "F64"):
        return True
    step = _CHUNK_ITEMS * np.dtype(unsigned).itemsize
    chunks = (np.frombuffer(data[at : at + step].tobytes(), unsigned) for at in range(0, len(data), step))
    return not any(bool(((chunk & exponent) == exponent).any()) for chunk in chunks)


def _begin(item: tuple[str, Any]) -> int:
    """Where an array says that it begins; what says nothing sensible comes first, and is refused there."""
    entry = item[1]
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and isinstance(offsets[0], int) else -1


def _refused(path: Path, problem: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"{path.name} is no safetensors file: {problem} ({path.parent})", stage="checkpoint")
