"""One of PEFT's LoRA modules, as the learner changes it. Unsloth's kernels read the same fields of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from art_torch.train.low_rank import LowRank
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from art_core.errors import TrainerStartError

_NAME = "default"
"""PEFT's name for the only adapter of a model."""


class PeftModule:
    """See `art_torch.train.low_rank.Adapted`."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        """Take over a module that PEFT has put an adapter into.

        Args:
            name: Its name, for the message.
            layer: The module.

        Raises:
            TrainerStartError: It is none.
        """
        if not isinstance(layer, LoraLayer):
            raise TrainerStartError(f"Unsloth put no adapter into {name!r}; choose other target_modules")
        self._layer = cast(Any, layer)
        self._own = (self._layer.lora_A[_NAME], self._layer.lora_B[_NAME], self._layer.scaling[_NAME])
        self._a: nn.Parameter = self._own[0].weight
        self._b: nn.Parameter = self._own[1].weight
        for parameter in (self._a, self._b):
            parameter.data = parameter.data.float()

    @property
    def quantised(self) -> bool:
        """Whether the base's weight is held in 4 bits."""
        return "quant_state" in vars(self._layer.base_layer.weight)

    @property
    def a(self) -> nn.Parameter:
        """(rank, in), float32."""
        return self._a

    @property
    def b(self) -> nn.Parameter:
        """(out, rank), float32."""
        return self._b

    def compute(self, update: LowRank | None) -> None:
        """See `Adapted`."""
        self._layer.enable_adapters(update is not None)
        if update is not None:
            self._use(_linear(update.a_RI), _linear(update.b_OR), update.scale)

    def compute_own(self) -> None:
        """See `Adapted`."""
        self._use(*self._own)
        self._layer.enable_adapters(True)

    def _use(self, a: nn.Linear, b: nn.Linear, scale: float) -> None:
        self._layer.lora_A[_NAME], self._layer.lora_B[_NAME], self._layer.scaling[_NAME] = a, b, scale


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def quantised_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors beside a 4-bit model's parameters that its weights can't be read without; none in others."""
    states = [state for parameter in model.parameters() if (state := vars(parameter).get("quant_state"))]
    nested = [state.state2 for state in states if state.nested]
    fields = [field for state in (*states, *nested) for field in vars(state).values()]
    return [field for field in fields if isinstance(field, torch.Tensor)]
