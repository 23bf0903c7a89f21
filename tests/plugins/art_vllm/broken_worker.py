"""A worker that loads adapters wrongly when it is told to: each fault is one that engines were seen to have."""

from __future__ import annotations

from typing import Any

from art_vllm.worker_extension import SlotProof


class BrokenWorker(SlotProof):
    """The real worker and the real proof, with one fault between them."""

    def art_break(self, fault: str, other: str) -> dict[str, Any]:
        """Break the next loads.

        Args:
            fault: One of `FAULTS`; empty: mend it.
            other: Directory of another step.
        """
        loader = self.model_runner.lora_manager
        manager = loader._adapter_manager
        loader.__dict__.pop("_load_adapter", None)
        manager.__dict__.pop("activate_adapter", None)
        if fault:
            FAULTS[fault](loader, manager, other)
        return {"fault": fault}


def nothing(loader: Any, manager: Any, other: str) -> None:
    """The load reports success, and no tensor reaches the slot."""
    activate = manager.activate_adapter

    def call(number: int) -> Any:
        kept = {name: module.set_lora for name, module in manager.modules.items()}
        for module in manager.modules.values():
            module.set_lora = lambda *_: None
        try:
            return activate(number)
        finally:
            for name, module in manager.modules.items():
                module.set_lora = kept[name]

    manager.activate_adapter = call


def another_step(loader: Any, manager: Any, other: str) -> None:
    """The files of another step are read."""
    load = loader._load_adapter
    loader._load_adapter = lambda request: load(type(request)(request.lora_name, request.lora_int_id, other))


def swapped(loader: Any, manager: Any, other: str) -> None:
    """Every q gets the A of its k, and the other way round."""
    load = loader._load_adapter

    def call(request: Any) -> Any:
        lora = load(request)
        for name in [name for name in lora.loras if name.endswith("q_proj")]:
            q, k = lora.loras[name], lora.loras[name.replace("q_proj", "k_proj")]
            q.lora_a, k.lora_a = k.lora_a, q.lora_a
        return lora

    loader._load_adapter = call


def another_scale(loader: Any, manager: Any, other: str) -> None:
    """B is twice as large."""
    load = loader._load_adapter

    def call(request: Any) -> Any:
        lora = load(request)
        for weights in lora.loras.values():
            weights.lora_b *= 2
        return lora

    loader._load_adapter = call


def the_base(loader: Any, manager: Any, other: str) -> None:
    """The slot is emptied, so that the base answers under the adapter's name."""
    activate = manager.activate_adapter

    def call(number: int) -> Any:
        fresh = activate(number)
        for module in manager.modules.values() if fresh else ():
            module.reset_lora(manager.lora_index_to_id.index(number))
        return fresh

    manager.activate_adapter = call


FAULTS = {
    "nothing is loaded": nothing,
    "another step": another_step,
    "q and k swapped": swapped,
    "another scale": another_scale,
    "the base": the_base,
}
