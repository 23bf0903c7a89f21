"""A frozen linear module with a trainable low-rank update, written so that it makes no copy of its output.

PEFT's own module computes base, update, scaled update and sum as four arrays of the output's size. On a CPU those
temporary arrays are what memory peaks on; here the update is added in place, forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from art_torch.frozen_linear import frozen_linear


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update of a linear module's weight: scale·B·A."""

    a_RI: Tensor
    """(rank, in)."""
    b_OR: Tensor
    """(out, rank)."""
    scale: float
    """alpha / rank."""


class Adapted(Protocol):
    """A frozen linear module with an update that is trained, whichever library computes it."""

    @property
    def a(self) -> nn.Parameter:
        """(rank, in), float32."""
        ...

    @property
    def b(self) -> nn.Parameter:
        """(out, rank), float32."""
        ...

    def compute(self, update: LowRank | None) -> None:
        """From now on the module's result is with another update than the one that is trained; None: the base's."""
        ...

    def compute_own(self) -> None:
        """From now on the module's result is with the update that is trained."""
        ...


class LowRankLinear(nn.Module):
    """x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ, with W and bias frozen.

    Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), equation 3.
    """

    rows_O: Tensor | None

    def __init__(self, base: nn.Linear, rank: int, scale: float, rows_O: Tensor | None = None) -> None:
        """Wrap a frozen module; A and B are zero until they are set.

        Args:
            base: The frozen module.
            rank: Inner dimension of the update.
            scale: alpha / rank.
            rows_O: Which row of B belongs to each row of the base, int64, where a library keeps the base's rows in
                another order than the adapter's files; None: they are in one order.
        """
        super().__init__()
        self.base = base
        device = base.weight.device
        self.a = nn.Parameter(torch.zeros(rank, base.in_features, dtype=torch.float32, device=device))
        """(rank, in), float32 whatever the base is."""
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32, device=device))
        """(out, rank), float32 whatever the base is."""
        self.register_buffer("rows_O", None if rows_O is None else rows_O.to(device), persistent=False)
        self._own = LowRank(self.a, self.b, scale)
        self._update: LowRank | None = self._own

    def compute(self, update: LowRank | None) -> None:
        """See `Adapted`."""
        self._update = update

    def compute_own(self) -> None:
        """See `Adapted`."""
        self._update = self._own

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (..., in); gives (..., out)."""
        update = self._update
        if update is None:
            return frozen_linear(x, self.base.weight, self.base.bias)
        b_OR = update.b_OR if self.rows_O is None else update.b_OR.index_select(0, self.rows_O)
        y_LO: Tensor = _LowRank.apply(x.flatten(0, -2), update.a_RI, b_OR, update.scale, self.base)  # type: ignore[no-untyped-call]
        return y_LO.view(*x.shape[:-1], -1)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, base: nn.Linear) -> Tensor:
        y_LO = frozen_linear(x_LI, base.weight, base.bias)
        low_LR = x_LI.to(a_RI.dtype) @ a_RI.T
        _add_product(y_LO, low_LR, b_OR.T, scale)
        ctx.save_for_backward(x_LI, low_LR, a_RI, b_OR)
        ctx.scale, ctx.base = scale, base
        return y_LO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope_LO,) = gradients
        x_LI, low_LR, a_RI, b_OR = ctx.saved_tensors
        exact_LO = slope_LO.to(b_OR.dtype)
        low_slope_LR = (exact_LO @ b_OR).mul_(ctx.scale)
        x_slope_LI = None
        if ctx.needs_input_grad[0]:
            x_slope_LI = frozen_linear(slope_LO, ctx.base.weight.T)
            _add_product(x_slope_LI, low_slope_LR, a_RI, 1.0)
        a_slope_RI = low_slope_LR.T @ x_LI.to(a_RI.dtype)
        b_slope_OR = (exact_LO.T @ low_LR).mul_(ctx.scale)
        return x_slope_LI, a_slope_RI, b_slope_OR, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add scale·left·right to total in place; in one call where the base is float32 like the update."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)
