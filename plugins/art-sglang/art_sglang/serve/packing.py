"""What an adapter's files must become in a slot of SGLang's pool, computed without SGLang, and its digest.

SGLang merges q, k, v and gate, up, casts to the base's type, and gives each rank of a tensor-parallel group its share.
The scale, alpha / rank, stays beside the tensors and is applied to every result. What is left of a slot beyond the
adapter's own rank is not read, so it does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from art_core.adapter_file import AdapterFile, RawTensor, Site
from art_core.errors import CheckpointCorruptError

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules that SGLang merges, in its order."""
_NEEDED: Mapping[str, tuple[str, ...]] = {"qkv_proj": ("q_proj", "v_proj"), "gate_up_proj": ("gate_proj",)}
"""Which of them SGLang can't do without once one of them is adapted."""
_WHOLE_OF = {part: whole for whole, parts in FUSED.items() for part in parts}
_ROWS_SPLIT = ("o_proj", "down_proj")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class SlotModule:
    """One module's share of a slot: A (parts × rank, in) and B (out, rank), in the type of the pool."""

    name: str
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Layout:
    """How the base model is spread over a tensor-parallel group."""

    dtype: torch.dtype
    """Of the pool."""
    ranks: int
    kv_heads: int
    """Of the whole model: with fewer than there are ranks, several ranks hold the same one."""


def slot_digest(rank: int, scale: float, modules: Iterable[SlotModule]) -> str:
    """Digest of one slot on one rank: what requests under its name are answered with.

    Args:
        rank: The adapter's.
        scale: The adapter's, compared as float32.
        modules: In any order; those that are all zero don't count, as if the adapter did not have them.

    Returns:
        Hex sha256.
    """
    digest = hashlib.sha256(f"{rank}\0".encode() + np.float32(scale).tobytes())
    for module in sorted(modules, key=lambda each: each.name):
        if module.a.any() or module.b.any():
            digest.update(f"{module.name}\0{tuple(module.a.shape)}\0{tuple(module.b.shape)}\0{module.a.dtype}".encode())
            for tensor in (module.a, module.b):
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def joined(digests: Iterable[str]) -> str:
    """One digest for the slots of all ranks, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def expected_digest(file: AdapterFile, sites: Mapping[str, Site], layout: Layout) -> str:
    """What `joined` must give for an adapter's slots.

    Args:
        file: The adapter, checked.
        sites: The base model's adaptable modules.
        layout: Where it goes.
    """
    merged = list(merge(file, sites))
    return joined(
        slot_digest(file.rank, file.scale, (_shard(module, parts, layout, rank) for module, parts in merged))
        for rank in range(layout.ranks)
    )


def require_mergeable(file: AdapterFile) -> None:
    """Refuse an adapter that SGLang can't merge.

    Args:
        file: The adapter, checked.

    Raises:
        CheckpointCorruptError: It adapts a part of what SGLang merges without the parts that SGLang needs with it.
    """
    for whole in sorted({_whole(name) for name in file.pairs} - file.pairs.keys()):
        stem, _, last = whole.rpartition(".")
        absent = [f"{stem}.{part}" for part in _NEEDED[last] if f"{stem}.{part}" not in file.pairs]
        if absent:
            raise CheckpointCorruptError(
                f"the adapter changes parts of {whole} but not {absent[0]}; SGLang serves "
                f"{' and '.join(_NEEDED[last])} only together, so adapt both or neither",
                stage="checkpoint",
            )


def merge(file: AdapterFile, sites: Mapping[str, Site]) -> Iterable[tuple[SlotModule, tuple[int, ...]]]:
    """An adapter's tensors as SGLang merges them, on the CPU, in the file's types.

    Args:
        file: The adapter, checked and mergeable.
        sites: The base model's adaptable modules.

    Yields:
        Each module, and how many of B's rows belong to each of its parts.
    """
    for whole in sorted({_whole(name) for name in file.pairs}):
        stem, _, last = whole.rpartition(".")
        parts = [f"{stem}.{part}" for part in FUSED[last]] if last in FUSED and whole not in file.pairs else [whole]
        pairs = [_pair(name, file, sites) for name in parts]
        rows = tuple(b.shape[0] for _, b in pairs)
        yield SlotModule(whole, torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])), rows


def _whole(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_WHOLE_OF.get(last, last)}"


def _pair(name: str, file: AdapterFile, sites: Mapping[str, Site]) -> tuple[Tensor, Tensor]:
    if name in file.pairs:
        a, b = file.pairs[name]
        return _tensor(a), _tensor(b)
    site = sites[name]
    return torch.zeros(file.rank, site.in_features), torch.zeros(site.out_features, file.rank)


def _tensor(raw: RawTensor) -> Tensor:
    return torch.frombuffer(raw.data, dtype=_DTYPES[raw.dtype]).view(raw.shape)


def _shard(module: SlotModule, rows: tuple[int, ...], layout: Layout, rank: int) -> SlotModule:
    """A rank's share: columns of A where the base's rows are split, else rows of B, part by part."""
    a, b, ranks = module.a, module.b, layout.ranks
    if module.name.endswith(_ROWS_SPLIT):
        a = a.chunk(ranks, dim=1)[rank]
    else:
        shares = []
        for number, part in enumerate(torch.split(b, list(rows))):
            of_heads = number > 0 and module.name.endswith("qkv_proj")
            pieces = min(ranks, layout.kv_heads) if of_heads else ranks
            shares.append(part.chunk(pieces)[rank * pieces // ranks])
        b = torch.cat(shares)
    return SlotModule(module.name, a.to(layout.dtype), b.to(layout.dtype))
