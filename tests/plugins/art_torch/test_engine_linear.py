"""Frozen linear modules compute what the module they replace does."""

from __future__ import annotations

import pytest
import torch
from art_torch.frozen_linear import FrozenLinear
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_equals_the_linear_it_replaces(dtype: torch.dtype, bias: bool, rows: int) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(96, 40, bias=bias).to(dtype).requires_grad_(False)
    frozen = FrozenLinear(linear)
    assert frozen.weight is linear.weight
    for shape in ((rows, 96), (1, rows, 96)):
        x = torch.randn(shape, dtype=dtype)
        with torch.inference_mode():
            got, expected = frozen(x), linear(x)
        assert got.shape == expected.shape and got.dtype == dtype
        torch.testing.assert_close(got, expected)


def test_strided_input() -> None:
    linear = nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(8, 5).t()
    with torch.inference_mode():
        torch.testing.assert_close(FrozenLinear(linear)(x), linear(x))
