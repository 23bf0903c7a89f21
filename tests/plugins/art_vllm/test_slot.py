"""What a slot holds, bit for bit. That the proof built on it catches wrong loads is for the heavy tests."""

from __future__ import annotations

import pytest
import torch
from art_vllm.slot import holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_corner_of_zeros(dtype: torch.dtype) -> None:
    content = torch.arange(1, 7).reshape(2, 3).to(dtype)
    held = torch.zeros(1, 4, 5, dtype=dtype)
    held[0, :2, :3] = content
    assert holds(held, content)
    assert holds(content[None], content)
    assert not holds(held, None)
    for row, column in ((0, 2), (1, 3), (2, 0), (3, 4)):
        other = held.clone()
        other[0, row, column] += 1
        assert not holds(other, content)


def test_bits_are_compared_and_not_values() -> None:
    zeros, nan = torch.zeros(2, 3), torch.full((2, 3), torch.nan)
    assert holds(zeros[None], None)
    assert not holds(-zeros[None], None)
    assert not holds(-zeros[None], zeros)
    assert holds(nan[None], nan)
