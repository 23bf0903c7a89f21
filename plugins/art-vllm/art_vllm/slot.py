"""An adapter's slot in vLLM's worker as it is, and as the checkpoint's files say that it must be. Pure but for reading.

A layer of the worker holds, for all slots together, a stack of A and one of B for each of its parts: one part for most
layers, three for q, k and v in one, two for gate and up in one. A slot is padded with zeros to the largest rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_WHOLE = {2: torch.int16, 4: torch.int32}
Pair = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank), the scale folded into B."""


def digests(manager: Any, slot: int, directory: Path) -> tuple[str, str]:
    """Digest a slot, and what it should hold.

    Args:
        manager: vLLM's `LoRAModelManager`.
        slot: Index into its stacks.
        directory: The checkpoint's.

    Returns:
        Hex sha256 of the slot's tensors, and of the files' tensors after the same cast, scale, packing and padding.

    Raises:
        TypeError: A layer is of a kind that is not known here.
        ValueError: So is its shape, or the files hold a tensor for no layer.
    """
    found, expected = hashlib.sha256(), None
    for label, held, content in matrices(manager, slot, directory):
        empty = content is None and holds(held, None)  # nothing is there, nothing should be: no megabytes of zeros
        if expected is None and not empty and not holds(held, content):
            expected = found.copy()  # so far they are one; most slots hold what they should, and are hashed once
        found.update(label)
        found.update(b"" if empty else _bytes(held))
        if expected is not None:
            expected.update(label)
            expected.update(b"" if empty else _bytes(padded(content, held)))
    return found.hexdigest(), (found if expected is None else expected).hexdigest()


def matrices(manager: Any, slot: int, directory: Path) -> Iterator[tuple[bytes, torch.Tensor, torch.Tensor | None]]:
    """Every matrix of a slot, one by one.

    Args:
        manager: vLLM's `LoRAModelManager`.
        slot: Index into its stacks.
        directory: The checkpoint's.

    Yields:
        What it is, in bytes; it (1, rows, columns); what its corner should hold (None: zeros alone).

    Raises:
        TypeError: A layer is of a kind that is not known here.
        ValueError: So is its shape, or the files hold a tensor for no layer.
    """
    pairs = read_pairs(manager, directory)
    for name, layer in sorted(manager.modules.items()):
        stacks = layer_stacks(name, layer)
        wanted = _sliced(layer, [pairs.pop(part, None) for part in manager.packed_modules.get(name, [name])])
        if len(wanted) != len(stacks):
            raise ValueError(f"layer {name} ({type(layer).__name__}) has {len(stacks)} parts, not {len(wanted)}")
        for number, (stack, pair) in enumerate(zip(stacks, wanted, strict=True)):
            for kind, whole, content in zip("AB", stack, pair or (None, None), strict=True):
                held = whole[slot].cpu()
                yield f"{name}\0{number}\0{kind}\0{tuple(held.shape)}\0{held.dtype}\0".encode(), held, content
    if pairs:
        raise ValueError(f"the checkpoint has weights for {min(pairs)}, where this model takes none")


def holds(held: torch.Tensor, content: torch.Tensor | None) -> bool:
    """Whether a matrix is another one in the corner of zeros, bit for bit.

    Args:
        held: (1, rows, columns).
        content: The other, of its type; None: zeros alone.
    """
    full = _bits(held)[0]
    if content is None:
        return not full.any()
    rows, columns = content.shape
    outside = [each for each in (full[rows:], full[:rows, columns:]) if each.numel()]
    return torch.equal(full[:rows, :columns], _bits(content)) and not any(each.any() for each in outside)


def layer_stacks(name: str, layer: Any) -> list[Pair]:
    """A layer's stacks, part by part.

    Args:
        name: For the message.
        layer: vLLM's layer with adapters.

    Raises:
        TypeError: It is a mixture of experts.
    """
    from vllm.lora.layers import FusedMoEWithLoRA

    if isinstance(layer, FusedMoEWithLoRA):
        raise TypeError(f"layer {name} is a mixture of experts, which the weight proof does not know")
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    return [(a, b)] if isinstance(a, torch.Tensor) else list(zip(a, b, strict=True))


def read_pairs(manager: Any, directory: Path) -> dict[str, Pair]:
    """The checkpoint's tensors, cast as vLLM casts them, with the scale folded in as it folds it.

    Args:
        manager: vLLM's `LoRAModelManager`: its type of adapters, and its names of modules.
        directory: The checkpoint's.
    """
    from vllm.lora.utils import parse_fine_tuned_lora_name

    config = json.loads((directory / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    mapper = _mapper(manager.model)
    halves: dict[str, dict[bool, torch.Tensor]] = {}
    for key, tensor in load_file(directory / "adapter_model.safetensors").items():
        name, is_a = parse_fine_tuned_lora_name(key, mapper)
        cast = tensor.to(manager.lora_config.lora_dtype)
        halves.setdefault(name, {})[is_a] = cast if is_a else cast * scale
    return {name: (half[True], half[False]) for name, half in halves.items()}


def padded(content: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A matrix in the corner of zeros.

    Args:
        content: The matrix; None: zeros alone.
        like: A tensor (1, rows, columns) of the result's shape and type.
    """
    full = torch.zeros_like(like)
    if content is not None:
        rows, columns = content.shape
        full[0, :rows, :columns] = content
    return full


def _mapper(model: Any) -> Any:
    """How the model renames modules, where it does: an optional attribute of vLLM's models."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _sliced(layer: Any, pairs: Sequence[Pair | None]) -> Sequence[Pair | None]:
    """What of each part this worker holds where several share the model."""
    if not any(pairs) or layer.tp_size == 1:
        return pairs
    if len(pairs) == 1 and (pair := pairs[0]):
        return [(layer.slice_lora_a(pair[0]), layer.slice_lora_b(pair[1]))]
    a = layer.slice_lora_a([pair[0] if pair else None for pair in pairs])
    b = layer.slice_lora_b([pair[1] if pair else None for pair in pairs])
    return [None if first is None else (first, second) for first, second in zip(a, b, strict=True)]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as whole numbers: as floats 0 equals -0, and NaN not itself."""
    return tensor.view(_WHOLE[tensor.element_size()])


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
