"""Linear modules whose weights never train, by the fastest matmul of the machine.

On a CPU in float32 that is oneDNN: torch's own choice there is MKL, which on processors that are not Intel's runs
at about half the speed for every number of rows. oneDNN reads the weight where it lies, so nothing is copied.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class FrozenLinear(nn.Linear):
    """Takes over a linear module's weight and bias; has no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._onednn = (
            linear.weight.device.type == "cpu"
            and linear.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply it.

        Args:
            input: (..., in).
        """
        if not self._onednn or input.numel() == 0:
            return F.linear(input, self.weight, self.bias)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return out


def freeze_head(model: PreTrainedModel) -> None:
    """Replace the output embeddings, which stand outside the layers that adapters change."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in list(model.named_modules()):
        if module is head and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FrozenLinear(module))
