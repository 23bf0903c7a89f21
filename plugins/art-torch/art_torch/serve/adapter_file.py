"""A checked adapter as tensors, and the digest of what it must become in a slot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from art_core import adapter_file
from art_core.adapter_file import Site
from art_torch.tensor_file import as_tensor


@dataclass(frozen=True)
class AdapterTensors:
    """One adapter as its file holds it: unscaled, in the file's types, on the CPU."""

    rank: int
    scale: float
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Module name to A (rank, in) and B (out, rank)."""

    def digest(self, dtype: torch.dtype) -> str:
        """Digest of the tensors after the engine's cast and scale, computed without going through a slot."""
        digest = hashlib.sha256()
        for name, (a, b) in sorted(self.pairs.items()):
            scaled = (b.float() * self.scale).to(dtype)
            hash_pair(digest, name, a.to(dtype), scaled)
        return digest.hexdigest()


def hash_pair(digest: hashlib._Hash, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add one module's name, shapes, type and bytes (A, then scaled B; row-major, unpadded) to a digest."""
    digest.update(f"{name}\0{tuple(a.shape)}\0{tuple(b.shape)}\0{a.dtype}\0".encode())
    for tensor in (a, b):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)


def read_adapter(directory: Path, sites: Mapping[str, Site], lora_rank: int) -> AdapterTensors:
    """Read and check an adapter.

    Args:
        directory: Holds adapter_config.json and adapter_model.safetensors.
        sites: The base model's adaptable modules by name.
        lora_rank: Largest rank allowed.

    Raises:
        CheckpointCorruptError: Names the file or tensor and what is wrong with it.
    """
    read = adapter_file.read_adapter(directory, sites, lora_rank)
    pairs = {name: (as_tensor(a), as_tensor(b)) for name, (a, b) in read.pairs.items()}
    return AdapterTensors(read.rank, read.scale, pairs)
