"""The torch engine's own server, with a fault in how step 3 of a run gets into its slot. Run as a script.

The fault is the model's name, so that one process can make them all: ``base@3`` is loaded with the fault ``base``.
Everything else is the real server: the files are read and checked, the expected digest is computed from them, the
slot's digest from the tensors that answer. What is not covered: a fault in how answers are computed from a slot.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from art_torch.serve.adapter_file import AdapterTensors, read_adapter
from art_torch.serve.adapter_table import AdapterTable
from art_torch.serve.lora_slot import LoRASlots
from art_torch.serve.server import main

from art_core.protocols.engine import LoadedAdapter

FAULTY_STEP = "3"

_load, _write = AdapterTable.load, LoRASlots.write
_loading: list[tuple[str, Path]] = []
_newest: list[int] = []


def load(self: AdapterTable, name: str, directory: Path) -> LoadedAdapter:
    """Load, remembering what for."""
    _loading.append((name, directory))
    return _load(self, name, directory)


def write(self: LoRASlots, slot: int, adapter: AdapterTensors) -> None:
    """Fill a slot, with the fault."""
    name, directory = _loading[-1]
    model, _, step = name.partition("@")
    fault = model if step == FAULTY_STEP else "none"
    match fault:
        case "no-op":  # the load says yes; what the newest slot holds goes on answering
            for linear in self._linears.values():
                linear.a_SRI[slot].copy_(linear.a_SRI[_newest[-1]])
                linear.b_SOR[slot].copy_(linear.b_SOR[_newest[-1]])
        case "previous":
            _write(self, slot, read_adapter(directory.parent / "0002", self.sites, self.lora_rank))
        case "another":
            _write(self, slot, read_adapter(directory.parent / "0001", self.sites, self.lora_rank))
        case "base":
            zeroed = {module: (a, torch.zeros_like(b)) for module, (a, b) in adapter.pairs.items()}
            _write(self, slot, replace(adapter, pairs=zeroed))
        case "scale":  # alpha / rank is forgotten
            _write(self, slot, replace(adapter, scale=1.0))
        case "half":  # every second module keeps what it had
            old = read_adapter(directory.parent / "0002", self.sites, self.lora_rank).pairs
            kept = sorted(old)[::2]
            _write(self, slot, replace(adapter, pairs={**adapter.pairs, **{module: old[module] for module in kept}}))
        case "swapped":  # two layers are exchanged
            names = {module: module.translate(str.maketrans("01", "10")) for module in adapter.pairs}
            _write(self, slot, replace(adapter, pairs={names[module]: pair for module, pair in adapter.pairs.items()}))
        case _:
            _write(self, slot, adapter)
    _newest.append(slot)


if __name__ == "__main__":
    AdapterTable.load, LoRASlots.write = load, write  # type: ignore[method-assign]
    main()
