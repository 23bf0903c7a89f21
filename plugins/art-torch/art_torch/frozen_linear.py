"""Linear modules whose weights never train, by the fastest matmul of the machine.

On a CPU in float32 that is oneDNN: torch's own choice there is MKL, which on processors that are not Intel's runs
at about half the speed for every number of rows. oneDNN reads the weight where it lies, so nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


def frozen_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input·Wᵀ + bias, without gradient: for frozen modules forward, and with W transposed for their backward.

    Args:
        input: (..., in).
        weight: (out, in), any strides.
        bias: (out,).
    """
    if not _by_onednn(weight) or input.numel() == 0:
        return F.linear(input, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out


def _by_onednn(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class FrozenLinear(nn.Linear):
    """Takes over a linear module's weight and bias; has no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Apply it.

        Args:
            input: (..., in).
        """
        return frozen_linear(input, self.weight, self.bias)


def layer_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear modules of a model's layers by name: what an adapter may change, in trainer and engine alike."""
    # The layers stand in a list, so a number is part of a layer's name; the head and the embeddings have none.
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linears.items() if any(part.isdigit() for part in name.split("."))}


def freeze_head(model: PreTrainedModel) -> None:
    """Replace the output embeddings, which stand outside the layers that adapters change."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in list(model.named_modules()):
        if module is head and isinstance(module, nn.Linear):
            model.set_submodule(name, FrozenLinear(module))
