"""Read a PEFT-layout adapter directory, and refuse it unless every tensor fits the base model exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG
from art_core.errors import CheckpointCorruptError
from art_torch.tensor_file import read_bytes, refuse_pickles

_CONFIG_LIMIT_BYTES = 1 << 20
_HEADER_LIMIT_BYTES = 16 << 20
_PREFIX = "base_model.model."
_REFUSED = {
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What an adapter may not use here, and the value that means "not used"."""


@dataclass(frozen=True)
class Site:
    """A linear module that an adapter can change."""

    in_features: int
    out_features: int


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
    refuse_pickles(directory)
    config = _read_config(directory / ADAPTER_CONFIG)
    rank = config["r"]
    if rank > lora_rank:
        raise _corrupt(f"{ADAPTER_CONFIG}: rank r is {rank}; allowed here: 1 to {lora_rank}")
    largest = 4 * lora_rank * sum(site.in_features + site.out_features for site in sites.values())
    data = read_bytes(directory / ADAPTER, largest + _HEADER_LIMIT_BYTES)
    if int.from_bytes(data[:8], "little") > min(_HEADER_LIMIT_BYTES, len(data) - 8):
        raise _corrupt(f"{ADAPTER}: its header claims {int.from_bytes(data[:8], 'little')} bytes of {len(data)}")
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise _corrupt(f"{ADAPTER} is no safetensors file: {error}") from error
    pairs = _pair(tensors)
    for name, (a, b) in pairs.items():
        _check_pair(name, a, b, sites.get(name), rank)
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return AdapterTensors(rank, scale, pairs)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_bytes(path, _CONFIG_LIMIT_BYTES))
    except ValueError as error:
        raise _corrupt(f"{path.name} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise _corrupt(f"{path.name} is a JSON {type(config).__name__}; an object is needed")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _corrupt(f"{path.name}: r is {rank!r}; a whole number from 1 is needed")
    if not (isinstance(alpha, int | float) and 0 < alpha < 1e9):
        raise _corrupt(f"{path.name}: lora_alpha is {alpha!r}; a number above 0 is needed")
    for key, neutral in _REFUSED.items():
        if config.get(key) not in (None, neutral):
            raise _corrupt(f"{path.name}: {key} is {config[key]!r}; this engine serves {neutral!r} only")
    return config


def _pair(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    names = set()
    for key in tensors:
        name, dot, kind = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not key.startswith(_PREFIX) or not dot or kind not in ("A.weight", "B.weight"):
            raise _corrupt(f"{ADAPTER}: tensor {key!r} is no LoRA weight ({_PREFIX}<module>.lora_A.weight or lora_B)")
        names.add(name)
    if not names:
        raise _corrupt(f"{ADAPTER} holds no tensors")
    pairs = {}
    for name in names:
        keys = [f"{_PREFIX}{name}.lora_{kind}.weight" for kind in "AB"]
        for key in keys:
            if key not in tensors:
                raise _corrupt(f"{ADAPTER}: tensor {key!r} is missing beside its pair")
        pairs[name] = (tensors[keys[0]], tensors[keys[1]])
    return pairs


def _check_pair(name: str, a: torch.Tensor, b: torch.Tensor, site: Site | None, rank: int) -> None:
    if site is None:
        raise _corrupt(f"{ADAPTER}: module {name!r} is no adaptable linear module of the base model")
    for kind, tensor, shape in (("A", a, (rank, site.in_features)), ("B", b, (site.out_features, rank))):
        what = f"{ADAPTER}: tensor {_PREFIX}{name}.lora_{kind}.weight"
        if tuple(tensor.shape) != shape:
            raise _corrupt(f"{what} has shape {tuple(tensor.shape)}; the base model and r={rank} need {shape}")
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise _corrupt(f"{what} has type {tensor.dtype}; allowed: float32, bfloat16, float16")
        # A sum is finite only if every entry is (or overflows, which no usable adapter does): one pass, no mask.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise _corrupt(f"{what} holds values that are not finite")


def _corrupt(message: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(message, stage="publish")
