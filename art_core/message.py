"""What a worker and its owner say to each other, and which versions may talk.

Every call is ``POST /<method>`` over a Unix socket; request and response bodies have one layout:

    8 bytes      N, little-endian unsigned
    N bytes      one JSON object, UTF-8
    the rest     safetensors with the arrays by name; nothing where there are none

    method   request JSON + arrays                     response JSON + arrays
    start    spec, resume_from, options                info
    step     config + `TrainBatch.arrays`              metrics, updated + `Probe.arrays`
    encode   request                                   - + as `arrays_of`
    save     directory                                 -
    offload, onload, stop   -                          -
    cancel   -; returns when the call has ended        -

Every request also has ``call``, the call's own id, by which `cancel` names it. A call that raised is answered with
``error``, what `art_core.errors.to_wire` makes of it, and nothing else. Floats survive JSON exactly.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from art_core import entry_point
from art_core.entry_point import installed
from art_core.protocols import CONTRACT_VERSION
from art_core.supervised import EncodedChat

Arrays = Mapping[str, NDArray[np.generic]]

_LENGTH_BYTES = 8

_MATCHING_COMPONENTS: Mapping[str, int] = {"Python": 1, "numpy": 1}
"""How many of a version's first components must be equal on both sides; of versions not named here, all of them.

Another interpreter is what a worker is for, and all that crosses is JSON and safetensors: Python's minor version may
differ. Code of ours may not: options, specs and results are its classes, on both sides."""


def encode(data: Mapping[str, Any], arrays: Arrays) -> bytes:
    """One message's body.

    Args:
        data: JSON data.
        arrays: Arrays of any shape, of a dtype that safetensors knows.
    """
    text = json.dumps(data).encode()
    # safetensors writes an array's memory as it lies, so that of a view would be scrambled without a word.
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + (save_safetensors(packed) if packed else b"")


def decode(body: bytes) -> tuple[dict[str, Any], Arrays]:
    """Inverse of `encode`; the arrays are writable."""
    start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    data: dict[str, Any] = json.loads(body[_LENGTH_BYTES:start])
    return data, load_safetensors(body[start:]) if start < len(body) else {}


def arrays_of(encoded: Sequence[EncodedChat]) -> Arrays:
    """S sequences of N tokens in all, as flat arrays.

    Args:
        encoded: At least one.
    """
    return {
        "chats_S": np.asarray([each.chat_index for each in encoded], np.int32),
        "lengths_S": np.asarray([len(each.tokens_T) for each in encoded], np.int32),
        "tokens_N": np.concatenate([each.tokens_T for each in encoded]).astype(np.int32),
        "trained_N": np.concatenate([each.trained_T for each in encoded]).astype(np.bool_),
    }


def encoded_of(arrays: Arrays) -> list[EncodedChat]:
    """Inverse of `arrays_of`."""
    ends = np.cumsum(arrays["lengths_S"])[:-1]
    columns = (arrays["chats_S"].tolist(), *(np.split(arrays[name], ends) for name in ("tokens_N", "trained_N")))
    return [EncodedChat(*each) for each in zip(*columns, strict=True)]


def own_versions(trainer: str) -> dict[str, str]:
    """Versions of this process that the other side has to fit.

    Args:
        trainer: The trainer's name: the version of the distribution that offers it counts too.
    """
    offers = {entry_point.distribution(each): entry_point.version(each) for each in installed() if each.name == trainer}
    return {
        **offers,
        "art-core": version("art-core"),
        "contract": str(CONTRACT_VERSION),
        "Python": platform.python_version(),
        "numpy": np.__version__,
    }


def skew(owner: Mapping[str, str], worker: Mapping[str, str]) -> str | None:
    """Where two processes' versions differ too much to talk; None where they fit.

    Args:
        owner: The owner's `own_versions`.
        worker: The worker's.
    """
    for name, ours in owner.items():
        theirs, count = worker.get(name, "none"), _MATCHING_COMPONENTS.get(name)
        if ours.split(".")[:count] != theirs.split(".")[:count]:
            return f"{name} is {ours} here and {theirs} there"
    return None
