"""What an adapter must become in SGLang's slots: merging, casting, sharing among ranks, and the digest of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from art_sglang.serve.packing import Layout, SlotModule, expected_digest, joined, merge, require_mergeable, slot_digest

from art_core.adapter_file import AdapterFile, Site, adaptable_modules, read_adapter
from art_core.errors import CheckpointCorruptError
from art_core.testing.adapter import AdapterShape, edit_config, edit_tensors, write_adapter

ATTENTION = "model.layers.0.self_attn"
ONE = Layout(torch.float32, ranks=1, kv_heads=2)


@pytest.fixture(scope="module")
def sites(tiny_model: Path) -> dict[str, Site]:
    return adaptable_modules(tiny_model)


@pytest.fixture
def adapter(tiny_model: Path, sites: dict[str, Site], tmp_path: Path) -> AdapterFile:
    write_adapter(tiny_model, tmp_path, AdapterShape(seed=1, rank=4))
    return read_adapter(tmp_path, sites, 8)


def without(file: AdapterFile, *modules: str) -> AdapterFile:
    return replace(file, pairs={name: pair for name, pair in file.pairs.items() if not name.endswith(modules)})


def merged(file: AdapterFile, sites: dict[str, Site]) -> dict[str, SlotModule]:
    return {module.name: module for module, _ in merge(file, sites)}


def tensor(file: AdapterFile, name: str, kind: int) -> torch.Tensor:
    raw = file.pairs[name][kind]
    return torch.frombuffer(raw.data, dtype=torch.float32).view(raw.shape)


def test_q_k_v_and_gate_up_are_merged_in_this_order(adapter: AdapterFile, sites: dict[str, Site]) -> None:
    modules = merged(adapter, sites)
    assert len(modules) == 8 and len(adapter.pairs) == 14
    qkv = modules[f"{ATTENTION}.qkv_proj"]
    for kind, whole in ((0, qkv.a), (1, qkv.b)):
        parts = [tensor(adapter, f"{ATTENTION}.{part}_proj", kind) for part in "qkv"]
        assert torch.equal(whole, torch.cat(parts))
    assert qkv.a.shape == (12, 64) and qkv.b.shape == (128, 4)


def test_a_part_that_is_not_adapted_is_zero(adapter: AdapterFile, sites: dict[str, Site]) -> None:
    some = without(adapter, "k_proj", "up_proj")
    qkv = merged(some, sites)[f"{ATTENTION}.qkv_proj"]
    assert not qkv.a[4:8].any() and not qkv.b[64:96].any() and qkv.b[96:].any()
    gate_up = merged(some, sites)["model.layers.0.mlp.gate_up_proj"]
    assert gate_up.a[:4].any() and not gate_up.a[4:].any() and gate_up.b.shape == (256, 4)


@pytest.mark.parametrize("absent", ["q_proj", "v_proj", "gate_proj"])
def test_what_sglang_needs_together_is_refused_apart(adapter: AdapterFile, sites: dict[str, Site], absent: str) -> None:
    with pytest.raises(CheckpointCorruptError, match=f"but not .*{absent}; SGLang serves .* only together"):
        require_mergeable(without(adapter, absent))
    for fine in ((), ("k_proj",), ("up_proj",), ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
        require_mergeable(without(adapter, *fine))


def test_the_digest_is_of_what_answers(adapter: AdapterFile, sites: dict[str, Site]) -> None:
    digest = expected_digest(adapter, sites, ONE)
    whole = [module for module, _ in merge(adapter, sites)]
    assert digest == joined([slot_digest(4, 2.0, reversed(whole))]), "the order of modules does not count"
    zero = SlotModule("model.layers.1.zero", torch.zeros(4, 2), torch.zeros(2, 4))
    assert digest == joined([slot_digest(4, 2.0, [*whole, zero])]), "a module without an adapter does not count"
    swapped = dict(adapter.pairs)
    for kind in "qo":  # of one size here
        other = "o" if kind == "q" else "q"
        swapped[f"{ATTENTION}.{kind}_proj"] = adapter.pairs[f"{ATTENTION}.{other}_proj"]
    others = {
        "rank": [slot_digest(5, 2.0, whole)],
        "scale": [slot_digest(4, 2.0001, whole)],
        "a module less": [slot_digest(4, 2.0, whole[1:])],
        "another type": [slot_digest(4, 2.0, [replace(m, a=m.a.double(), b=m.b.double()) for m in whole])],
        "two ranks": [slot_digest(4, 2.0, whole)] * 2,
    }
    assert digest not in {joined(each) for each in others.values()}
    assert digest != expected_digest(replace(adapter, pairs=swapped), sites, ONE)
    assert digest != expected_digest(adapter, sites, replace(ONE, dtype=torch.bfloat16))


def test_an_adapter_that_changes_nothing_still_has_its_a(tiny_model: Path, tmp_path: Path) -> None:
    """Step 0 has B = 0: its digest must tell one step 0 from another, and from an empty slot."""
    sites, digests = adaptable_modules(tiny_model), set()
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        write_adapter(tiny_model, tmp_path / str(seed), AdapterShape(seed=seed, strength=0.0))
        digests.add(expected_digest(read_adapter(tmp_path / str(seed), sites, 8), sites, ONE))
    assert len(digests) == 2 and joined([slot_digest(4, 2.0, [])]) not in digests


def test_bf16_files_and_rslora_are_read_as_they_are(tiny_model: Path, sites: dict[str, Site], tmp_path: Path) -> None:
    write_adapter(tiny_model, tmp_path, AdapterShape(seed=1, rank=4, alpha=8))
    plain = read_adapter(tmp_path, sites, 8)
    edit_config(tmp_path, use_rslora=True)
    assert read_adapter(tmp_path, sites, 8).scale == 4.0 != plain.scale
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: each * 0 for name, each in tensors.items()}))
    empty = read_adapter(tmp_path, sites, 8)
    assert expected_digest(empty, sites, ONE) == joined([slot_digest(4, 4.0, [])])


@pytest.mark.parametrize(("ranks", "kv_heads"), [(2, 2), (4, 2), (4, 4)])
def test_every_rank_has_its_share_and_together_they_have_all(
    adapter: AdapterFile, sites: dict[str, Site], ranks: int, kv_heads: int
) -> None:
    """Rows of B are split where the base's are, columns of A for o and down; fewer kv heads than ranks are repeated."""
    layout, shares = Layout(torch.float32, ranks, kv_heads), []
    for rank in range(ranks):
        share = {}
        for module, rows in merge(adapter, sites):
            share[module.name] = SlotModule(module.name, *_cut(module, rows, layout, rank))
        shares.append(slot_digest(4, 2.0, share.values()))
    assert expected_digest(adapter, sites, layout) == joined(shares)


def _cut(module: SlotModule, rows: tuple[int, ...], layout: Layout, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by explicit indices."""
    if module.name.endswith(("o_proj", "down_proj")):
        width = module.a.shape[1] // layout.ranks
        return module.a[:, rank * width : (rank + 1) * width], module.b
    kept, offset = [], 0
    for number, count in enumerate(rows):
        pieces = layout.ranks
        mine = rank
        if number and module.name.endswith("qkv_proj") and layout.kv_heads < layout.ranks:
            pieces, mine = layout.kv_heads, rank // (layout.ranks // layout.kv_heads)
        height = count // pieces
        kept.append(module.b[offset + mine * height : offset + (mine + 1) * height])
        offset += count
    return module.a, torch.cat(kept)
