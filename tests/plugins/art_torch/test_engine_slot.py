"""Adapter slots: what is refused, and that the digests tell a right load from every wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from art_torch.base_model import load_base
from art_torch.serve.adapter_file import AdapterTensors
from art_torch.serve.adapter_table import AdapterTable
from art_torch.serve.lora_slot import LoRASlots
from safetensors.torch import load_file, save_file

from art_core.errors import CheckpointCorruptError, EngineError
from tests.plugins.art_torch.engine_sample import write_adapter

PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"


def table(base: Path, dtype: Any = "float32", max_loras: int = 2) -> AdapterTable:
    return AdapterTable(LoRASlots(load_base(str(base), "cpu", dtype).model, max_loras, 8), "base", lambda _: None)


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("steps")
    shape: dict[str, Any] = {"lora_alpha": 16, "target_modules": "all-linear"}
    return [
        write_adapter(tiny_model, root / str(seed), seed=seed, r=r, **shape) for seed, r in ((1, 8), (2, 8), (3, 4))
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_digests_agree_and_differ_between_steps(tiny_model: Path, adapters: list[Path], dtype: str) -> None:
    loaded = table(tiny_model, dtype, max_loras=3)
    digests = [loaded.load(str(i), directory) for i, directory in enumerate(adapters)]
    assert all(d.slot_digest == d.expected_digest for d in digests)
    assert len({d.slot_digest for d in digests}) == 3


def test_a_slot_keeps_nothing_of_its_predecessor(
    tiny_model: Path, adapters: list[Path], engine_adapters: dict[str, Path]
) -> None:
    loaded = table(tiny_model, max_loras=1)
    for name, directory in (("full", adapters[0]), ("low-rank", adapters[2]), ("few-modules", engine_adapters["b"])):
        digests = loaded.load(name, directory)
        assert digests.slot_digest == digests.expected_digest
        loaded.unload(name)


def _nothing(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    pass


def _other_step(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    LoRASlots.write(slots, slot, other)


def _base(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    zeros = {name: (torch.zeros_like(a), torch.zeros_like(b)) for name, (a, b) in adapter.pairs.items()}
    LoRASlots.write(slots, slot, AdapterTensors(adapter.rank, adapter.scale, zeros))


def _identity(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    identity = {name: (a, torch.zeros_like(b)) for name, (a, b) in adapter.pairs.items()}
    LoRASlots.write(slots, slot, AdapterTensors(adapter.rank, adapter.scale, identity))


def _wrong_scale(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    LoRASlots.write(slots, slot, AdapterTensors(adapter.rank, 1.0, adapter.pairs))


def _module_forgotten(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    pairs = {name: pair for name, pair in adapter.pairs.items() if name != Q0}
    LoRASlots.write(slots, slot, AdapterTensors(adapter.rank, adapter.scale, pairs))


def _another_slot(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    LoRASlots.write(slots, 1 - slot, adapter)


def _padding_left(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    LoRASlots.write(slots, slot, adapter)
    slots._linears[Q0].b_SOR[slot, :, -1] = 1.0


def _stray_module(slots: LoRASlots, slot: int, adapter: AdapterTensors, other: AdapterTensors) -> None:
    LoRASlots.write(slots, slot, adapter)
    slots._linears["model.layers.1.mlp.up_proj"].b_SOR[slot, 0, 0] = 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "broken",
    [
        _nothing,
        _other_step,
        _base,
        _identity,
        _wrong_scale,
        _module_forgotten,
        _another_slot,
        _padding_left,
        _stray_module,
    ],
)
def test_a_broken_load_has_another_digest(
    tiny_model: Path,
    engine_adapters: dict[str, Path],
    dtype: str,
    broken: Callable[[LoRASlots, int, AdapterTensors, AdapterTensors], None],
) -> None:
    slots = LoRASlots(load_base(str(tiny_model), "cpu", dtype).model, 2, 8)  # type: ignore[arg-type]
    directory = engine_adapters["b"]

    class Broken(LoRASlots):
        """Slots whose write is wrong in one way; everything else is the real thing."""

        def write(self, slot: int, adapter: AdapterTensors) -> None:
            # A step whose every value differs by one part in a hundred.
            other = {name: (a * 1.01, b * 1.01) for name, (a, b) in adapter.pairs.items()}
            broken(self, slot, adapter, AdapterTensors(adapter.rank, adapter.scale, other))

    right = AdapterTable(slots, "base", lambda _: None).load("x", directory)
    assert right.slot_digest == right.expected_digest
    slots.__class__ = Broken
    for linear in slots._linears.values():
        linear.a_SRI.zero_()
        linear.b_SOR.zero_()
    wrong = AdapterTable(slots, "base", lambda _: None).load("x", directory)
    assert wrong.expected_digest == right.expected_digest
    assert wrong.slot_digest != wrong.expected_digest


def _edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")


def _configure(directory: Path, **values: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _link(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "elsewhere")
    (directory / "adapter_model.safetensors").symlink_to("elsewhere")


def _pickle(directory: Path) -> None:
    (directory / "adapter_model.safetensors").unlink()
    torch.save({}, directory / "adapter_model.bin")


def _header(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


def _truncate(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


A_KEY, B_KEY = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_model.safetensors").unlink(), r"adapter_model\.safetensors.*No such file"),
        (_link, r"adapter_model\.safetensors.*regular file"),
        (_pickle, r"adapter_model\.bin.*pickle"),
        (_header, r"header claims 1099511627776 bytes"),
        (_truncate, r"no safetensors file"),
        (lambda d: (d / "adapter_config.json").write_text("{"), r"adapter_config\.json is no JSON"),
        (lambda d: (d / "adapter_config.json").write_text("[]"), r"adapter_config\.json is a JSON list"),
        (lambda d: _configure(d, r=9), r"rank r is 9; allowed here: 1 to 8"),
        (lambda d: _configure(d, r=True), r"r is True"),
        (lambda d: _configure(d, lora_alpha=float("nan")), r"lora_alpha is nan"),
        (lambda d: _configure(d, use_dora=True), r"use_dora is True"),
        (lambda d: _configure(d, rank_pattern={"q_proj": 2}), r"rank_pattern is"),
        (lambda d: _configure(d, r=4), r"tensor .*lora_A\.weight has shape \(8, \d+\)"),
        (lambda d: _edit(d, lambda t: t.pop(B_KEY)), rf"{B_KEY}' is missing"),
        (lambda d: _edit(d, lambda t: t.update({A_KEY: t[A_KEY][:, :-1]})), r"has shape \(8, 63\).*need \(8, 64\)"),
        (lambda d: _edit(d, lambda t: t.update({A_KEY: t[A_KEY].double()})), r"type F64"),
        (lambda d: _edit(d, lambda t: t[A_KEY].view(-1)[3].fill_(float("inf"))), rf"{A_KEY}.*not finite"),
        (lambda d: _edit(d, lambda t: t[B_KEY].view(-1)[3].fill_(float("nan"))), rf"{B_KEY}.*not finite"),
        (lambda d: _edit(d, lambda t: t.update(stray=torch.zeros(1))), r"'stray' is no LoRA weight"),
        (
            lambda d: _edit(d, lambda t: t.update({k.replace("layers.0", "layers.7"): t.pop(k) for k in list(t)})),
            r"module 'model\.layers\.7\.\S+' is no linear module of the base model that can be adapted",
        ),
        (lambda d: _edit(d, lambda t: t.clear()), r"holds no tensors"),
    ],
)
def test_damage_is_named_and_changes_nothing(
    tiny_model: Path, adapters: list[Path], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    slots = LoRASlots(load_base(str(tiny_model), "cpu").model, 1, 8)
    loaded = AdapterTable(slots, "base", lambda _: None)
    shutil.copytree(adapters[0], tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(CheckpointCorruptError, match=message):
        loaded.load("x", tmp_path / "copy")
    assert not any(linear.a_SRI.any() or linear.b_SOR.any() for linear in slots._linears.values())
    assert loaded.names() == ["base"]
    assert loaded.load("x", adapters[0]).slot_digest is not None  # the only slot is still free


def test_taken_names_and_full_slots(tiny_model: Path, adapters: list[Path]) -> None:
    loaded = table(tiny_model, max_loras=1)
    loaded.load("x", adapters[0])
    with pytest.raises(EngineError, match="'x' is taken"):
        loaded.load("x", adapters[1])
    with pytest.raises(EngineError, match="'base' is taken"):
        loaded.load("base", adapters[1])
    with pytest.raises(EngineError, match=r"no free slot.*1 of 1"):
        loaded.load("y", adapters[1])
    assert loaded.directories() == {"x": adapters[0]}
