"""Array files from elsewhere: what is no safetensors, or not finite, is refused by name and costs nothing."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from art_core.base_model import BaseIdentity
from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG, Checkpoint, write_manifest
from art_core.errors import CheckpointCorruptError
from art_core.intake import require_arrays
from tests.staged import stage_step

BASE = BaseIdentity(name="tiny", digest="0" * 64)


def checkpoint(tmp_path: Path, data: bytes) -> Checkpoint:
    directory = tmp_path / "checkpoint"
    directory.mkdir(exist_ok=True)
    (directory / ADAPTER).write_bytes(data)
    (directory / ADAPTER_CONFIG).write_text("{}")
    return write_manifest(directory, run="r", step=1, base_model=BASE)


def file_of(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_what_trainers_write_passes(tmp_path: Path) -> None:
    require_arrays(stage_step(tmp_path / "run", 1))
    arrays = {"a": np.ones((2, 3), np.float16), "b": np.arange(5), "e": np.empty(0, np.float32), "s": np.float64(1)}
    require_arrays(checkpoint(tmp_path, save({name: np.asarray(array) for name, array in arrays.items()}, {"f": "pt"})))
    require_arrays(checkpoint(tmp_path, file_of({})))


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite(tmp_path: Path, kind: str, value: float) -> None:
    array = np.ones(3_000_000, kind)
    array[2_999_999] = value
    with pytest.raises(CheckpointCorruptError, match=f"{ADAPTER} .* array 'a' holds values that are not finite"):
        require_arrays(checkpoint(tmp_path, save({"a": array})))


def test_a_bfloat16_value_that_is_not_finite(tmp_path: Path) -> None:
    for bits, finite in ((0x3F80, True), (0x7F80, False), (0xFFC0, False)):
        made = checkpoint(tmp_path, file_of(one(dtype="BF16", shape=[1], data_offsets=[0, 2]), struct.pack("<H", bits)))
        if finite:
            require_arrays(made)
        else:
            with pytest.raises(CheckpointCorruptError, match="not finite"):
                require_arrays(made)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "claims 0 bytes of 0"),
        (b"1234567", "bytes of 7"),
        (pickle.dumps({"a": [0.0] * 100}), "its header claims"),
        (struct.pack("<Q", 1 << 30) + b"{}", "its header claims 1073741824 bytes of 10"),
        (struct.pack("<Q", (1 << 63) + 1) + b"{}", "its header claims 9223372036854775809"),
        (struct.pack("<Q", 2) + b"[]", "its header is a JSON list"),
        (struct.pack("<Q", 2) + b"{x", "its header is no JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "its header is no JSON"),
        (file_of({"a": 7}), "array 'a' is described as '7'"),
        (file_of(one(dtype="PICKLE"), b"x" * 8), "array 'a' is described as"),
        (file_of(one(shape=[-2]), b"x" * 8), "array 'a' lies at 0:8"),
        (file_of(one(shape=[-1, -2]), b"x" * 8), "array 'a' lies at 0:8"),
        (file_of(one(shape=[3]), b"x" * 8), r"array 'a' lies at 0:8; its shape and type need \(0, 12\)"),
        (file_of(one(shape="xx"), b"x" * 8), "array 'a'"),
        (file_of(one(data_offsets=[0, 80]), b"x" * 8), "array 'a' lies at 0:80"),
        (file_of(one(data_offsets=[-8, 0]), b"x" * 8), "array 'a' lies at -8:0"),
        (file_of(one(data_offsets=[8, 16]), b"x" * 16), "array 'a' lies at 8:16"),
        (file_of(one(shape=[1 << 40, 1 << 40]), b"x" * 8), "array 'a' lies at"),
        (file_of(one(), b"x" * 9), "its arrays cover 8 of 9 bytes"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointCorruptError, match=f"{ADAPTER} is no safetensors file: .*{reason}"):
        require_arrays(checkpoint(tmp_path, data))


def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    """A sparse file that holds as much as it claims."""
    made = checkpoint(tmp_path, struct.pack("<Q", 1 << 30))
    with (made.directory / ADAPTER).open("r+b") as file:
        file.truncate((1 << 30) + 8)
    tracemalloc.start()
    with pytest.raises(CheckpointCorruptError, match="its header claims 1073741824 bytes"):
        require_arrays(made)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
