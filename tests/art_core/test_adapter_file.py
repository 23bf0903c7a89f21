"""What is read of an adapter's files, and what is refused, without torch and without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from art_core.adapter_file import RawTensor, Site, adaptable_modules, read_adapter
from art_core.checkpoint import ADAPTER
from art_core.errors import CheckpointCorruptError
from art_core.testing.adapter import DAMAGES, AdapterShape, edit_config, write_adapter
from art_core.testing.adapter import adaptable_modules as modules_of_the_config


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    write_adapter(tiny_model, tmp_path, AdapterShape(seed=1, rank=4, alpha=8))
    return tmp_path


def test_the_modules_are_those_of_the_model(tiny_model: Path) -> None:
    expected = {name: Site(*size) for name, size in modules_of_the_config(tiny_model).items()}
    assert adaptable_modules(tiny_model) == expected


def test_a_directory_without_safetensors_has_no_modules(tmp_path: Path) -> None:
    assert adaptable_modules(tmp_path) == {}


@pytest.mark.parametrize("data", [b"\xff" * 8, (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b"{"])
def test_a_damaged_header_of_the_base_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors"):
        adaptable_modules(tmp_path)


def test_a_good_adapter_is_read_whole(tiny_model: Path, adapter: Path) -> None:
    read = read_adapter(adapter, adaptable_modules(tiny_model), lora_rank=8)
    assert (read.rank, read.scale) == (4, 2.0)
    assert read.pairs.keys() == adaptable_modules(tiny_model).keys()
    a, b = read.pairs["model.layers.0.self_attn.q_proj"]
    site = adaptable_modules(tiny_model)["model.layers.0.self_attn.q_proj"]
    assert (a.shape, b.shape) == ((4, site.in_features), (site.out_features, 4))


def test_rank_stabilised_scale(tiny_model: Path, adapter: Path) -> None:
    edit_config(adapter, use_rslora=True)
    assert read_adapter(adapter, adaptable_modules(tiny_model), 8).scale == 4.0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(tiny_model: Path, adapter: Path, damage: str) -> None:
    DAMAGES[damage](adapter)
    with pytest.raises(CheckpointCorruptError):
        read_adapter(adapter, adaptable_modules(tiny_model), lora_rank=8)


def test_a_header_of_a_gigabyte_is_refused_without_reading_it(tiny_model: Path, adapter: Path) -> None:
    with (adapter / ADAPTER).open("r+b") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate((1 << 30) + 64)  # sparse: takes no space
    with pytest.raises(CheckpointCorruptError, match=ADAPTER):
        read_adapter(adapter, adaptable_modules(tiny_model), lora_rank=8)


@pytest.mark.parametrize(
    ("key", "value"), [("peft_type", "IA3"), ("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 2})]
)
def test_what_changes_the_arithmetic_is_refused(tiny_model: Path, adapter: Path, key: str, value: object) -> None:
    edit_config(adapter, **{key: value})
    with pytest.raises(CheckpointCorruptError, match=key):
        read_adapter(adapter, adaptable_modules(tiny_model), lora_rank=8)


def test_another_type_of_number_is_refused(tiny_model: Path, adapter: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    site = adaptable_modules(tiny_model)["model.layers.0.self_attn.q_proj"]
    a, b = np.zeros((4, site.in_features)), np.zeros((site.out_features, 4))
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, adapter / ADAPTER)
    with pytest.raises(CheckpointCorruptError, match="F64"):
        read_adapter(adapter, adaptable_modules(tiny_model), lora_rank=8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite_are_seen(dtype: str, value: float) -> None:
    values = np.array([1.0, -2.0, value, 0.5], np.float32)
    assert not _raw(values, dtype).finite()
    assert _raw(values[[0, 1, 3]], dtype).finite()


def _raw(values: np.ndarray, dtype: str) -> RawTensor:
    if dtype == "BF16":
        data = (values.view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return RawTensor(dtype, values.shape, bytearray(data))
