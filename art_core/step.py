"""Stage 3's data: how a step is to be made, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from art_core.errors import CheckpointCorruptError, ConfigError

PROBE_SEQUENCES = 2
PROBE_TOKENS = 64

LossName = Literal["cispo", "ppo", "cross_entropy"]
Level = Literal["token", "sequence", "average", "geometric_average"]
KlSource = Literal["current_learner", "sample"]


@dataclass(frozen=True)
class StepConfig:
    """One training step's algorithm.

    A ratio is new over old probability of a sampled token, an advantage what the token is worth above its group's mean.
    """

    learning_rate: float = 5e-6
    """AdamW step size. Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2; default openpipe-art's."""
    loss_fn: LossName = "cispo"
    """``cispo``: minus clipped ratio, held constant, times advantage times logprob; ``ppo``: minus the smaller of ratio
    and clipped ratio times advantage; ``cross_entropy``: minus advantage times logprob, for supervised steps, where the
    advantage is a weight of 1. Source: MiniMax-M1 (arXiv:2506.13585), equations 4-5; Schulman et al. 2017
    (arXiv:1707.06347), equation 7; Radford et al. 2018, "Improving Language Understanding", equation 1."""
    epsilon: float | None = None
    """Lower clip: the ratio is held above 1 - epsilon. None: 1.0 for cispo (no lower bound), 0.2 for ppo. Source:
    Schulman et al. 2017 (arXiv:1707.06347), equation 7; cispo's is openpipe-art's."""
    epsilon_high: float | None = None
    """Upper clip ("clip-higher"): the ratio is held below 1 + epsilon_high. None: 4.0 for cispo, epsilon for ppo.
    Source: DAPO (arXiv:2503.14476), section 3.1; cispo's default is openpipe-art's."""
    importance_sampling_level: Level = "token"
    """What the ratio is of: the token; its sequence (geometric mean of the tokens' ratios); the mean of the two; their
    geometric mean. Source: GSPO (arXiv:2507.18071), equation 7, for the sequence's; the two means are openpipe-art's.
    """
    max_negative_advantage_importance_sampling_weight: float | None = None
    """Largest ratio of a token with a negative advantage. None: only the clip bounds it. Source: Ye et al. 2020, dual
    clip (arXiv:1912.09729), equation 5."""
    mask_prob_ratio: bool = False
    """Tokens whose ratio lies outside the clip's limits teach nothing, instead of being clipped. Source: openpipe-art;
    as IcePop's mask (arXiv:2510.18855)."""
    kimi_k2_tau: float | None = None
    """Take tau times the token's log ratio from its advantage: a pull towards the policy that sampled. Source: Kimi
    k1.5 (arXiv:2501.12599), equation 3, as used for Kimi K2; per token as in openpipe-art."""
    precalculate_logprobs: bool = False
    """The ratio's old logprobs are the trainer's own before the step, not those that came with the tokens; costs a
    forward pass. Source: Hilton et al. 2021 (arXiv:2110.00641), the decoupled objective."""
    truncated_importance_sampling: float | None = None
    """Multiply a token's loss by old probability over the engine's, at most this; needs `precalculate_logprobs`.
    Source: Espeholt et al. 2018 (arXiv:1802.01561), section 4.1, truncated weights."""
    allow_training_without_logprobs: bool = False
    """Train on choices that came without logprobs, as if the trainer's present weights had sampled them. Source:
    openpipe-art."""
    scale_rewards: bool = True
    """Divide a group's advantages by its standard deviation. Source: GRPO (arXiv:2402.03300), section 4.1.2; without
    it: Dr. GRPO (arXiv:2503.20783), section 3.2."""
    advantage_balance: float = 0.0
    """Above 0: negative advantages are multiplied by 1 - balance; below 0: positive ones by 1 + balance. Source:
    openpipe-art."""
    kl_penalty_coef: float = 0.0
    """Take this times a token's log ratio to the reference policy, less the batch's mean of it, from its advantage; 0:
    no reference is computed. Source: Ziegler et al. 2019 (arXiv:1909.08593), equation 2; centred as in openpipe-art."""
    kl_penalty_source: KlSource = "current_learner"
    """Whose logprobs are compared with the reference's: the trainer's own before the step (costs a forward pass), or
    those that came with the tokens. Source: openpipe-art."""
    kl_penalty_reference_step: int | None = None
    """A stored step of this run as the reference policy. None: the base model, unless the next option is set. Source:
    openpipe-art."""
    kl_ref_adapter_path: str | None = None
    """Directory of an adapter in PEFT's layout, for the same base model, as the reference policy. Source: openpipe-art.
    """
    update_sequences: int | None = None
    """Sequences per optimizer update, in the order submitted: a step makes as many updates as it takes. None: one
    update from the whole batch. Source: Schulman et al. 2017 (arXiv:1707.06347), algorithm 1 (minibatches)."""
    update_learning_rates: tuple[float, ...] | None = None
    """AdamW step size of each of the step's updates in turn, instead of `learning_rate`: a schedule's share. As many as
    the step has updates. Source: ours."""
    num_trajectories_learning_rate_multiplier_power: float = 0.0
    """Multiply an update's learning rate by its number of trajectories with an advantage, to this power. Source:
    Krizhevsky 2014 (arXiv:1404.5997) for 0.5; Goyal et al. 2017 (arXiv:1706.02677), section 2.1, for 1."""
    scale_learning_rate_by_reward_std_dev: bool = False
    """Multiply the learning rate by how the groups' reward deviation has changed since step 0, on a line fitted through
    the run's logged steps. Source: openpipe-art."""
    max_grad_norm: float = 0.1
    """Global gradient norm above which the gradient is scaled down. Source: Pascanu et al. 2013 (arXiv:1211.5063),
    algorithm 1; default openpipe-art's."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of the adapter's weights. Source: Loshchilov and Hutter 2019 (arXiv:1711.05101),
    algorithm 2; default openpipe-art's."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment. Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""
    adam_beta2: float = 0.99
    """AdamW's decay of the second moment. Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1; default
    openpipe-art's."""
    adam_epsilon: float = 1e-8
    """AdamW's denominator floor. Source: Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""
    microbatch_tokens: int = 2048
    """Most tokens in one forward pass; gradients accumulate over as many passes as an update needs. Source: ours."""
    logprob_chunk_tokens: int = 1024
    """Most tokens whose logits are held at once; fewer where the vocabulary is large. Source: openpipe-art."""

    def __post_init__(self) -> None:
        if self.loss_fn not in get_args(LossName):
            raise ConfigError(f"loss_fn is {self.loss_fn!r}; LocalBackend only supports loss_fn='cispo' or 'ppo'.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(repr, allowed))}")
        for name, low, high in _LIMITS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name), low, high))
        if self.update_learning_rates is not None:
            rates = tuple(
                _number("update_learning_rates", rate, *_LEARNING_RATE) for rate in self.update_learning_rates
            )
            object.__setattr__(self, "update_learning_rates", rates)
        if self.truncated_importance_sampling is not None and not self.precalculate_logprobs:
            raise ConfigError(
                "truncated_importance_sampling needs precalculate_logprobs=True: otherwise the ratio itself is already "
                "taken to the engine's logprobs"
            )
        if self.kl_penalty_reference_step is not None and self.kl_ref_adapter_path is not None:
            raise ConfigError(
                f"kl_penalty_reference_step is {self.kl_penalty_reference_step} and kl_ref_adapter_path is "
                f"{self.kl_ref_adapter_path!r}; set only one of them"
            )

    @property
    def ratio_limits(self) -> tuple[float, float]:
        """Lowest and highest importance ratio after clipping, defaults filled in."""
        low, high = (1.0, 4.0) if self.loss_fn == "cispo" else (0.2, None)
        low = self.epsilon if self.epsilon is not None else low
        high = self.epsilon_high if self.epsilon_high is not None else (high if high is not None else low)
        return 1.0 - low, 1.0 + high


def _number(name: str, value: object, low: float, high: float) -> float:
    """The value as Python's own number, whatever library's it was."""
    whole = isinstance(low, int)
    kind = Integral if whole else Real
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= float(value) <= high:
        raise ConfigError(
            f"{name} is {value!r}; allowed: {'whole numbers' if whole else 'numbers'}, {low:g} to {high:g}"
        )
    return round(float(value)) if whole else float(value)


_CHOICES: dict[str, tuple[object, ...]] = {
    "importance_sampling_level": get_args(Level),
    "kl_penalty_source": get_args(KlSource),
    **dict.fromkeys(
        (
            "mask_prob_ratio",
            "precalculate_logprobs",
            "allow_training_without_logprobs",
            "scale_rewards",
            "scale_learning_rate_by_reward_std_dev",
        ),
        (True, False),
    ),
}

_LEARNING_RATE = (0.0, 1.0)
_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("learning_rate", *_LEARNING_RATE),
    ("epsilon", 0.0, 1.0),
    ("epsilon_high", 0.0, 1e6),
    ("max_negative_advantage_importance_sampling_weight", 1e-9, 1e9),
    ("kimi_k2_tau", 0.0, 1e6),
    ("truncated_importance_sampling", 1e-9, 1e9),
    ("advantage_balance", -1.0, 1.0),
    ("kl_penalty_coef", 0.0, 1e6),
    ("kl_penalty_reference_step", 0, 1 << 31),
    ("update_sequences", 1, 1 << 31),
    ("num_trajectories_learning_rate_multiplier_power", -2.0, 2.0),
    ("max_grad_norm", 1e-9, 1e9),
    ("weight_decay", 0.0, 1.0),
    ("adam_beta1", 0.0, 0.999999),
    ("adam_beta2", 0.0, 0.999999),
    ("adam_epsilon", 1e-12, 1.0),
    ("microbatch_tokens", 1, 1 << 24),
    ("logprob_chunk_tokens", 1, 1 << 24),
)
"""Field to its lowest and highest value; whole numbers where the lowest is one."""


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
