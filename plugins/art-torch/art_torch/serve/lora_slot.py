"""Adapter slots: per adapted linear module one stack of A and B for every adapter that can be loaded at once.

A forward pass sees its tokens grouped by slot, so an adapter costs two small matmuls per module and a base row none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from art_core.adapter_file import Site
from art_torch.frozen_linear import FrozenLinear, layer_linears
from art_torch.serve.adapter_file import AdapterTensors, hash_pair

BASE_SLOT = -1
"""Slot number of rows that no adapter changes."""


@dataclass
class Segments:
    """Which tokens of the current forward pass use which slot."""

    current: Sequence[tuple[int, int, int]] = field(default_factory=tuple)
    """(slot, start, stop) over the flat tokens; tokens in no segment use the base alone."""


class SlotLinear(FrozenLinear):
    """A frozen linear module with an adapter per slot: y = x W^T + (x A^T) B^T, the scale folded into B.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), equation 3.
    """

    def __init__(self, linear: nn.Linear, max_loras: int, lora_rank: int, segments: Segments) -> None:
        super().__init__(linear)
        like: Any = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.a_SRI = torch.zeros(max_loras, lora_rank, linear.in_features, **like)
        self.b_SOR = torch.zeros(max_loras, linear.out_features, lora_rank, **like)
        # Transposed views of the stacks, made once: they share the stacks' memory.
        self._views = [(self.a_SRI[s].t(), self.b_SOR[s].t()) for s in range(max_loras)]
        self._segments = segments

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the base and each segment's adapter.

        Args:
            input: (1, N, in) or (N, in), N the flat tokens of the pass.
        """
        out = super().forward(input)
        if self._segments.current:
            flat_NI, flat_NO = input.view(-1, self.in_features), out.view(-1, self.out_features)
            for slot, start, stop in self._segments.current:
                a_IR, b_RO = self._views[slot]
                flat_NO[start:stop].addmm_(flat_NI[start:stop] @ a_IR, b_RO)
        return out


class LoRASlots:
    """The slots of one model. Wraps the model's linear modules in place when made."""

    def __init__(self, model: PreTrainedModel, max_loras: int, lora_rank: int) -> None:
        self.segments = Segments()
        self.max_loras = max_loras
        self.lora_rank = lora_rank
        self.dtype = model.dtype
        self._linears: dict[str, SlotLinear] = {}
        for name, linear in layer_linears(model).items():
            self._linears[name] = SlotLinear(linear, max_loras, lora_rank, self.segments)
            model.set_submodule(name, self._linears[name])
        self.sites: Mapping[str, Site] = {
            name: Site(linear.in_features, linear.out_features) for name, linear in self._linears.items()
        }

    def write(self, slot: int, adapter: AdapterTensors) -> None:
        """Copy a checked adapter into a slot that no running sequence uses; what the slot held before is gone."""
        rank = adapter.rank
        for name, linear in self._linears.items():
            a_RI, b_OR = linear.a_SRI[slot], linear.b_SOR[slot]
            pair = adapter.pairs.get(name)
            if pair is None:
                a_RI.zero_()
                b_OR.zero_()
                continue
            a_RI[:rank].copy_(pair[0])
            b_OR[:, :rank].copy_(pair[1].float().mul(adapter.scale))
            if rank < self.lora_rank:
                a_RI[rank:].zero_()
                b_OR[:, rank:].zero_()

    def digest(self, slot: int, rank: int, names: Collection[str]) -> str:
        """Digest of what a slot holds, read back from the tensors that serve requests.

        Args:
            slot: The slot.
            rank: The adapter's rank.
            names: The modules that it adapts. Anything but zeros in another module, or beyond the rank, enters
                the digest too, so that it can't equal the checkpoint's.
        """
        digest = hashlib.sha256()
        for name, linear in sorted(self._linears.items()):
            a_RI, b_OR = linear.a_SRI[slot], linear.b_SOR[slot]
            if rank < self.lora_rank and (a_RI[rank:].any() or b_OR[:, rank:].any()):
                digest.update(f"{name}\0padding\0".encode())
            if name in names or a_RI.any() or b_OR.any():
                hash_pair(digest, name, a_RI[:rank], b_OR[:, :rank])
        return digest.hexdigest()
