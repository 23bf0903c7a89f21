"""Stage 3's data: how a step is to be made, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from art_core.errors import CheckpointCorruptError, ConfigError

PROBE_SEQUENCES = 2
PROBE_TOKENS = 64


@dataclass(frozen=True)
class StepConfig:
    """One training step's algorithm. Defaults are the reference backend's unless a source says otherwise."""

    learning_rate: float = 5e-6
    """AdamW step size."""
    loss_fn: Literal["cispo", "ppo"] = "cispo"
    """``cispo``: MiniMax-M1 (arXiv:2506.13585) eq. 4-5; ``ppo``: Schulman et al. 2017 (arXiv:1707.06347) eq. 7."""
    epsilon: float | None = None
    """Lower clip: the ratio is held above 1 - epsilon. None: 1.0 for cispo (no lower bound), 0.2 for ppo."""
    epsilon_high: float | None = None
    """Upper clip: the ratio is held below 1 + epsilon_high. None: 4.0 for cispo, epsilon for ppo."""
    scale_rewards: bool = True
    """Divide a group's advantages by its standard deviation (GRPO, arXiv:2402.03300, section 4.1.2)."""
    max_grad_norm: float = 0.1
    """Global gradient norm above which the gradient is scaled down."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of the adapter's weights."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: float = 0.99
    """AdamW's decay of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW's denominator floor."""
    microbatch_tokens: int = 2048
    """Most tokens in one forward pass; gradients accumulate over as many passes as the batch needs."""

    def __post_init__(self) -> None:
        if self.loss_fn not in ("cispo", "ppo"):
            raise ConfigError(f"loss_fn is {self.loss_fn!r}; LocalBackend only supports loss_fn='cispo' or 'ppo'.")
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{name} is {value!r}; allowed: {low:g} to {high:g}")

    @property
    def ratio_limits(self) -> tuple[float, float]:
        """Lowest and highest importance ratio after clipping, defaults filled in."""
        low, high = (1.0, 4.0) if self.loss_fn == "cispo" else (0.2, None)
        low = self.epsilon if self.epsilon is not None else low
        high = self.epsilon_high if self.epsilon_high is not None else (high if high is not None else low)
        return 1.0 - low, 1.0 + high


_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("learning_rate", 0.0, 1.0),
    ("epsilon", 0.0, 1.0),
    ("epsilon_high", 0.0, 1e6),
    ("max_grad_norm", 1e-9, 1e9),
    ("weight_decay", 0.0, 1.0),
    ("adam_beta1", 0.0, 0.999999),
    ("adam_beta2", 0.0, 0.999999),
    ("adam_epsilon", 1e-12, 1.0),
    ("microbatch_tokens", 1, 1 << 24),
)


@dataclass(frozen=True, eq=False)
class Probe:
    """Up to 2 sequences of a step's own batch, and what the trainer said of them before and after the step.

    At most 64 scored tokens together. Kept with the checkpoint, so that a resumed run can prove again what it
    serves. Logprobs are natural-log at temperature 1; entry t is about token t.
    """

    tokens: tuple[NDArray[np.int32], ...]
    """Per sequence, its T token ids."""
    scored: tuple[NDArray[np.bool_], ...]
    """Per sequence, which of the T tokens are scored; never the first."""
    before: tuple[NDArray[np.float32], ...]
    """Per sequence, T logprobs under the previous step's weights; 0 where not scored."""
    after: tuple[NDArray[np.float32], ...]
    """Per sequence, T logprobs under this step's weights; 0 where not scored."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The probe as flat named arrays, ``<field>.<sequence>``, each contiguous.

        safetensors writes an array's memory as it lies, so that of a view would be scrambled without a word.
        """
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {f"{name}.{i}": np.ascontiguousarray(a) for name, column in columns for i, a in enumerate(column)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Inverse of `arrays`."""
        count = sum(name.startswith("tokens.") for name in arrays)
        columns = ([arrays[f"{f.name}.{i}"] for i in range(count)] for f in fields(cls))
        return cls(*(tuple(column) for column in columns))  # type: ignore[arg-type]

    def write(self, path: Path) -> None:
        """Write as safetensors."""
        path.write_bytes(save_safetensors(self.arrays()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            CheckpointCorruptError: The file is not a probe.
        """
        try:
            return cls.from_arrays(load_safetensors(path.read_bytes()))
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointCorruptError(f"{path.name} is no probe: {error}", stage="checkpoint") from error


@dataclass(frozen=True)
class StepResult:
    """What a trainer says of the step it made."""

    metrics: Mapping[str, float]
    """Finite numbers, e.g. ``loss/train``, ``loss/grad_norm``, ``loss/entropy``."""
    probe: Probe
    updated: bool
    """False where nothing could be learned: no optimizer step was made, the weights are as before."""
