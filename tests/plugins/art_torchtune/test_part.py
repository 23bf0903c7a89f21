"""What of the torchtune trainer can be known without torchtune: how it is registered, and that it is light."""

from __future__ import annotations

import sys
from asyncio import create_subprocess_exec
from typing import cast

import torch
from art_torch.train.low_rank import LowRank, LowRankLinear
from torch import nn

from art_core.part import TrainerPart
from art_core.plugins import load_part


async def test_registering_it_imports_no_torch() -> None:
    code = "import art_torchtune.plugin, sys; sys.exit('torch' in sys.modules or 'torchtune' in sys.modules)"
    process = await create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


def test_it_is_for_those_who_name_it() -> None:
    """Torchtune is developed no further: where both can be used, torch is chosen."""
    torch_part, own = (cast(TrainerPart, load_part("trainer", name)) for name in ("torch", "torchtune"))
    assert own.priority < torch_part.priority


def test_rows_in_another_order_are_those_of_the_adapters_files() -> None:
    """The base's rows stand in torchtune's order, B's in PEFT's; result and gradients are as with both in one order."""
    torch.manual_seed(0)
    rows_O, x = torch.tensor([0, 2, 1, 3, 4]), torch.randn(3, 6)
    plain = LowRankLinear(nn.Linear(6, 5).requires_grad_(False), 2, 4.0)
    turned_base = nn.Linear(6, 5).requires_grad_(False)
    turned_base.weight.copy_(plain.base.weight[rows_O])
    turned_base.bias.copy_(plain.base.bias[rows_O])
    turned = LowRankLinear(turned_base, 2, 4.0, rows_O)
    for parameter, own in ((plain.a, turned.a), (plain.b, turned.b)):
        parameter.data.normal_()
        own.data.copy_(parameter.data)
    torch.testing.assert_close(turned(x), plain(x)[:, rows_O])
    weight_O = torch.randn(5)
    (plain(x) * weight_O).sum().backward()
    (turned(x) * weight_O[rows_O]).sum().backward()
    assert plain.a.grad is not None and plain.b.grad is not None
    torch.testing.assert_close(turned.a.grad, plain.a.grad)
    torch.testing.assert_close(turned.b.grad, plain.b.grad)
    other = LowRank(torch.randn(3, 6), torch.randn(5, 3), 0.5)
    for update in (other, None):
        plain.compute(update)
        turned.compute(update)
        torch.testing.assert_close(turned(x), plain(x)[:, rows_O])
