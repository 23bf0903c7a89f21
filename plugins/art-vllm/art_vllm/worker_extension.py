"""What vLLM's stock worker is given besides its own methods, by its own flag ``--worker-extension-cls``.

Called through ``/collective_rpc``, whose arguments are strings. An exception in such a method ends the whole engine, so
these return it as data. They read attributes that vLLM calls private; the tests hold them for every pinned version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from art_vllm.slot import digests

_FILES = ("adapter_config.json", "adapter_model.safetensors")


class SlotProof:
    """Digests of slots and of their files, and slots freed; mixed into the worker, whose attributes it uses."""

    model_runner: Any

    def art_digest(self, adapter: str, directory: str) -> dict[str, Any]:
        """Digest an adapter's slot as it is, and as its checkpoint's files say that it must be.

        Args:
            adapter: vLLM's number of the adapter.
            directory: The checkpoint's, as this process sees it.

        Returns:
            ``{"slot", "expected"}``, sha256 in hex; or ``{"error"}``.
        """
        return _as_data(lambda: self._art_digest(int(adapter), Path(directory)))

    def art_keep(self, adapters: str) -> dict[str, Any]:
        """Let go of all adapters but some, at once rather than when their slots are wanted.

        Args:
            adapters: Numbers of those to keep, a JSON list.

        Returns:
            ``{"removed"}``, the numbers of the others; or ``{"error"}``.
        """
        return _as_data(lambda: self._art_keep(set(json.loads(adapters))))

    def art_reload(self, adapters: str) -> dict[str, Any]:
        """Read adapters again, whose slots are gone with the base's weights.

        Args:
            adapters: Name, number and directory of each, a JSON list.

        Returns:
            ``{"reloaded"}``, their numbers; or ``{"error"}``.
        """
        return _as_data(lambda: self._art_reload(json.loads(adapters)))

    def art_base(self) -> dict[str, Any]:
        """Digest the base model's files, as `art_core.base_model.base_digest` does.

        Returns:
            ``{"digest"}``, None where the model is no local directory; or ``{"error"}``.
        """
        return _as_data(self._art_base)

    def art_files(self, directory: str) -> dict[str, Any]:
        """Digest a checkpoint's files as this process sees them, which may be on another machine.

        Args:
            directory: The checkpoint's, as this process sees it.

        Returns:
            ``{"files"}``, name to sha256 in hex of what an adapter is read from; or ``{"error"}``.
        """
        return _as_data(lambda: {"files": {name: _sha256(Path(directory) / name) for name in _FILES}})

    def _art_base(self) -> dict[str, Any]:
        from art_core.base_model import base_digest

        model = Path(self.model_runner.model_config.model)
        return {"digest": base_digest(model) if model.is_dir() else None}

    def _art_digest(self, adapter: int, directory: Path) -> dict[str, Any]:
        manager = self.model_runner.lora_manager._adapter_manager
        if adapter not in manager.lora_index_to_id:
            raise ValueError(f"adapter {adapter} is in no slot; the slots hold {manager.lora_index_to_id}")
        slot, expected = digests(manager, manager.lora_index_to_id.index(adapter), directory)
        return {"slot": slot, "expected": expected}

    def _art_keep(self, kept: set[int]) -> dict[str, Any]:
        manager = self.model_runner.lora_manager
        gone = sorted(manager.list_adapters() - kept)
        for adapter in gone:
            manager.remove_adapter(adapter)
        return {"removed": gone}

    def _art_reload(self, adapters: list[tuple[str, int, str]]) -> dict[str, Any]:
        from vllm.lora.request import LoRARequest

        manager = self.model_runner.lora_manager
        manager.remove_all_adapters()
        for name, number, directory in adapters:
            manager.add_adapter(LoRARequest(name, number, directory))
        return {"reloaded": [number for _, number, _ in adapters]}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_data(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - raised here it would end the engine; who called raises it
        return {"error": f"{type(error).__name__}: {error}"}
