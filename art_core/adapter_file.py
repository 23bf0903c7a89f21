"""An adapter's files in PEFT's layout, checked before anything is done with them. Reads no pickle, needs numpy alone.

Whoever takes an adapter in (an engine that would die on it, a fork) reads it through this room: a file that is
damaged, hostile, or made for another base model is refused with its name and what is wrong with it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from art_core.checkpoint import ADAPTER, ADAPTER_CONFIG
from art_core.errors import CheckpointCorruptError

PREFIX = "base_model.model."
"""What PEFT's files put before a module's name."""

_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_CONFIG_LIMIT_BYTES = 1 << 20
_HEADER_LIMIT_BYTES = 16 << 20
_LIMIT_BYTES = 16 << 30
"""Of an adapter whose base is not at hand."""
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_IN_A_LAYER = re.compile(r"\.\d+\..+\.weight$")
_LAYER = re.compile(r"\.(\d+)\.")
_REFUSED = {
    "peft_type": "LORA",
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
class RawTensor:
    """A tensor as its file holds it."""

    dtype: str
    """``F32``, ``BF16`` or ``F16``."""
    shape: tuple[int, ...]
    data: bytearray
    """Row-major, little-endian."""

    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        if self.dtype == "F32":
            # a sum is finite only if every entry is (or overflows, which no usable adapter does): one pass, no mask
            with np.errstate(over="ignore", invalid="ignore"):
                return bool(np.isfinite(np.frombuffer(self.data, "<f4").sum()))
        exponent = 0x7F80 if self.dtype == "BF16" else 0x7C00
        return not bool(((np.frombuffer(self.data, "<u2") & exponent) == exponent).any())


@dataclass(frozen=True)
class AdapterFile:
    """One adapter as its files hold it: unscaled, in the file's types."""

    rank: int
    scale: float
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
    pairs: Mapping[str, tuple[RawTensor, RawTensor]]
    """Module name to A (rank, in) and B (out, rank)."""


def adaptable_modules(base_model: Path) -> dict[str, Site]:
    """The linear modules of a base model's layers, from the headers of its safetensors files.

    Args:
        base_model: Local directory of the model.

    Returns:
        Module name to its size; empty where the weights are quantised or are no safetensors.

    Raises:
        CheckpointCorruptError: A header is damaged.
    """
    sites = {}
    for path in sorted(base_model.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__" and _IN_A_LAYER.search(name) and len(entry["shape"]) == 2:
                out_features, in_features = entry["shape"]
                sites[name.removesuffix(".weight")] = Site(in_features, out_features)
    return sites


def read_adapter(directory: Path, sites: Mapping[str, Site] | None, lora_rank: int) -> AdapterFile:
    """Read and check an adapter.

    Args:
        directory: Holds adapter_config.json and adapter_model.safetensors.
        sites: The base model's adaptable modules by name; None where the base is not at hand: any modules will do.
        lora_rank: Largest rank allowed.

    Raises:
        CheckpointCorruptError: Names the file or tensor and what is wrong with it.
    """
    refuse_pickles(directory)
    config = read_adapter_config(directory / ADAPTER_CONFIG)
    rank = config["r"]
    if rank > lora_rank:
        raise _corrupt(f"{ADAPTER_CONFIG}: rank r is {rank}; allowed here: 1 to {lora_rank}")
    pairs = _pair(_tensors(read_bytes(directory / ADAPTER, _largest_bytes(sites, lora_rank))))
    for name, pair in pairs.items():
        _check_pair(name, pair, _own_site(pair) if sites is None else sites.get(name), rank)
    if sites is not None and config.get("layers_to_transform") is None:
        _require_every_layer(pairs, sites)
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return AdapterFile(rank, scale, pairs)


def refuse_pickles(directory: Path) -> None:
    """Refuse a directory that holds weights as a pickle, which may run any code when it is read.

    Raises:
        CheckpointCorruptError: It names the file, or says that the directory can't be read.
    """
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    except OSError as error:
        raise _corrupt(f"checkpoint {directory} can't be read: {error.strerror}") from error
    if names:
        raise _corrupt(f"checkpoint {directory} holds {names[0]}, a pickle; only safetensors files are read")


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Content of a regular file.

    Args:
        path: The file; its last part must not be a link.
        limit_bytes: More than this is no file of ours.

    Raises:
        CheckpointCorruptError: It is absent, a link, no file, or too large.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise _corrupt(f"{path.name} in {path.parent} can't be opened as a regular file: {why}") from error
    with open(fd, "rb") as file:  # noqa: PTH123 - the descriptor was opened without following links
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            raise _corrupt(
                f"{path.name} in {path.parent} is not a regular file of at most {limit_bytes} bytes "
                f"(mode {stat.filemode(status.st_mode)}, {status.st_size} bytes)"
            )
        return file.read()


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size)) if size <= _HEADER_LIMIT_BYTES else None
        except ValueError as error:
            raise _corrupt(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise _corrupt(f"{path} has a header of {size} bytes; a JSON object of at most {_HEADER_LIMIT_BYTES} is needed")
    return header


def read_adapter_config(path: Path) -> dict[str, Any]:
    """PEFT's description of an adapter, checked: ``r`` and ``lora_alpha`` are usable, and nothing unusual is asked for.

    Raises:
        CheckpointCorruptError: It is absent, no JSON object, or asks for what can't be served.
    """
    try:
        config = json.loads(read_bytes(path, _CONFIG_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
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
            raise _corrupt(f"{path.name}: {key} is {config[key]!r}; only {neutral!r} can be served")
    return config


def _tensors(data: bytes) -> dict[str, RawTensor]:
    claimed = int.from_bytes(data[:8], "little")
    if claimed > min(_HEADER_LIMIT_BYTES, len(data) - 8):
        raise _corrupt(f"{ADAPTER}: its header claims {claimed} bytes of {len(data)}")
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _corrupt(f"{ADAPTER} is no safetensors file: {error}") from error
    return {name: RawTensor(entry["dtype"], tuple(entry["shape"]), entry["data"]) for name, entry in entries}


def _largest_bytes(sites: Mapping[str, Site] | None, lora_rank: int) -> int:
    if sites is None:
        return _LIMIT_BYTES
    return 4 * lora_rank * sum(site.in_features + site.out_features for site in sites.values()) + _HEADER_LIMIT_BYTES


def _own_site(pair: tuple[RawTensor, RawTensor]) -> Site | None:
    a, b = (tensor.shape for tensor in pair)
    return Site(a[1], b[0]) if len(a) == len(b) == 2 else None


def _pair(tensors: Mapping[str, RawTensor]) -> dict[str, tuple[RawTensor, RawTensor]]:
    names = set()
    for key in tensors:
        name, dot, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if not key.startswith(PREFIX) or not dot or kind not in ("A.weight", "B.weight"):
            raise _corrupt(f"{ADAPTER}: tensor {key!r} is no LoRA weight ({PREFIX}<module>.lora_A.weight or lora_B)")
        names.add(name)
    if not names:
        raise _corrupt(f"{ADAPTER} holds no tensors")
    pairs = {}
    for name in names:
        keys = [f"{PREFIX}{name}.lora_{kind}.weight" for kind in "AB"]
        for key in keys:
            if key not in tensors:
                raise _corrupt(f"{ADAPTER}: tensor {key!r} is missing beside its pair")
        pairs[name] = (tensors[keys[0]], tensors[keys[1]])
    return pairs


def _check_pair(name: str, pair: tuple[RawTensor, RawTensor], site: Site | None, rank: int) -> None:
    if site is None:
        raise _corrupt(f"{ADAPTER}: module {name!r} is no linear module of the base model that can be adapted")
    for kind, tensor, shape in zip("AB", pair, ((rank, site.in_features), (site.out_features, rank)), strict=True):
        what = f"{ADAPTER}: tensor {PREFIX}{name}.lora_{kind}.weight"
        if tensor.shape != shape:
            raise _corrupt(f"{what} has shape {tensor.shape}; the base model and r={rank} need {shape}")
        if tensor.dtype not in _ITEM_BYTES:
            raise _corrupt(f"{what} has type {tensor.dtype}; allowed: {', '.join(_ITEM_BYTES)}")
        if len(tensor.data) != math.prod(shape) * _ITEM_BYTES[tensor.dtype]:
            raise _corrupt(f"{what} has {len(tensor.data)} bytes; its shape {shape} as {tensor.dtype} needs others")
        if not tensor.finite():
            raise _corrupt(f"{what} holds values that are not finite")


def _require_every_layer(pairs: Collection[str], sites: Collection[str]) -> None:
    """A module that is adapted in one layer is in all of its stack, but for layers at the end that nothing adapts.

    Those may predict several tokens ahead: files hold them, and trainers don't load them.
    """
    last: dict[str, int] = {}
    for stack, layer, _ in map(_place, pairs):
        last[stack] = max(layer, last.get(stack, 0))
    adapted = {(stack, module) for stack, _, module in map(_place, pairs)}
    for name in sites:
        stack, layer, module = _place(name)
        if (stack, module) in adapted and layer <= last[stack] and name not in pairs:
            raise _corrupt(f"{ADAPTER}: {PREFIX}{name} has no tensors, and {module} is adapted in other layers")


def _place(name: str) -> tuple[str, int, str]:
    """A module's stack of layers, its layer's number, and what it is called in there."""
    stack, layer, module = _LAYER.split(name, maxsplit=1)
    return stack, int(layer), module


def _corrupt(message: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(message, stage="checkpoint")
