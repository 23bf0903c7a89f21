"""What of the Unsloth trainer can be known without Unsloth: its refusals, its variables, its view of PEFT's modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from art_torch.train.low_rank import LowRank, LowRankLinear
from art_unsloth.library import load, misfits
from art_unsloth.options import Device, UnslothTrainerOptions, require_supported, variables
from art_unsloth.peft_module import PeftModule
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from art_core.errors import ConfigError, TrainerStartError


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("cuda", UnslothTrainerOptions(packing=True), r"packing is True .* CUDA .* trainer='torch'"),
    ],
)
def test_options_that_do_not_go_with_the_device_are_refused(
    device: Device, options: UnslothTrainerOptions, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        require_supported(device, options)


def test_what_a_cpu_can_do_is_let_in() -> None:
    for packing in (None, True, False):
        require_supported("cpu", UnslothTrainerOptions(packing=packing, dtype="bfloat16", load_in_4bit=True))


def test_unsloth_is_not_imported_after_what_it_patches() -> None:
    with pytest.raises(TrainerStartError, match="transformers was imported before Unsloth"):
        load("auto")


def test_versions_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "unsloth-2026.10.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    needs = ["transformers<5.0", "trl<=1.15.0", "torch>=2", "nobody>=1", "peft<0.1; extra == 'x'"]
    lines = [
        "Metadata-Version: 2.1",
        "Name: unsloth",
        "Version: 2026.10.9",
        *(f"Requires-Dist: {each}" for each in needs),
    ]
    metadata.write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = misfits()
    assert first.startswith("it needs transformers<5.0, installed: 5.")
    assert second == "it needs trl<=1.15.0, installed: none"


def test_nothing_trains_under_the_spoof_of_a_gpu(tmp_path: Path) -> None:
    made = variables(tmp_path)
    assert (made["UNSLOTH_ALLOW_CPU"], made["UNSLOTH_COMPILE_LOCATION"]) == ("0", str(tmp_path / "unsloth-compiled"))


def test_a_module_of_peft_computes_what_it_is_told() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    expected = LowRankLinear(base, 2, 4.0)
    holder = inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=8, target_modules=["proj"]), nn.ModuleDict({"proj": base})
    )
    layer = holder["proj"]
    module = PeftModule("proj", layer)
    a, b = module.a, module.b
    assert not module.quantised
    for parameter, own in ((a, expected.a), (b, expected.b)):
        parameter.data.normal_()
        own.data.copy_(parameter.data)
    other = LowRank(torch.randn(3, 6), torch.randn(5, 3), 0.5)
    for update in (None, other, None):
        module.compute(update)
        expected.compute(update)
        torch.testing.assert_close(layer(x), expected(x))
        assert module.a is a and module.b is b
        module.compute_own()
        expected.compute_own()
        torch.testing.assert_close(layer(x), expected(x))
    layer(x).square().sum().backward()
    expected(x).square().sum().backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, expected.a.grad)
    torch.testing.assert_close(b.grad, expected.b.grad)


def test_a_module_without_adapter_is_named() -> None:
    with pytest.raises(TrainerStartError, match=r"put no adapter into .model\.proj."):
        PeftModule("model.proj", nn.Linear(2, 2))
