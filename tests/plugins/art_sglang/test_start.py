"""Starts that can't succeed are refused soon, with what to do about it, and leave nothing behind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from art_sglang.engine import SglangEngine
from art_sglang.options import SglangOptions

from art_core.errors import ConfigError, EngineError, EngineStartError
from art_core.protocols.engine import EngineSpec
from art_core.testing.family import descendants

pytestmark = pytest.mark.timeout(600)


def spec(model: Path, root: Path, **more: Any) -> EngineSpec:
    return EngineSpec(str(model), "base", lora_rank=8, log_path=root / "engine.log", **more)


def litter() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("art-sglang-*"))


async def test_gpus_on_a_machine_without_are_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    engine = SglangEngine(SglangOptions(device="cpu"))
    with pytest.raises(ConfigError, match=r"inference_gpu_ids are \[0\] and SGLang would run on the CPU"):
        await engine.start(spec(tiny_model, tmp_path, device_ids=(0,)))
    with pytest.raises(ConfigError, match="'cuda' and no CUDA driver"):
        await SglangEngine(SglangOptions(device="cuda")).start(spec(tiny_model, tmp_path))
    assert not (tmp_path / "engine.log").exists()
    await engine.stop()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the base model's 4 attention heads; allowed: 1, 2, 4"),
        ({"max_model_len": 513}, "max_model_len is 513; allowed: 8 to 512"),
    ],
)
async def test_what_the_model_can_not_be_served_with_is_refused_before_anything_starts(
    tiny_model: Path, tmp_path: Path, options: dict[str, int], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        await SglangEngine(SglangOptions(device="cpu", **options)).start(spec(tiny_model, tmp_path))  # type: ignore[arg-type]
    assert not (tmp_path / "engine.log").exists()


async def test_an_interpreter_without_sglang_says_how_to_get_one(tiny_model: Path, tmp_path: Path) -> None:
    before = litter(), descendants().keys()
    engine = SglangEngine(SglangOptions(device="cpu", python=sys.executable))
    with pytest.raises(ConfigError, match="holds no SGLang; try: art env create sglang"):
        await engine.start(spec(tiny_model, tmp_path))
    assert (litter(), descendants().keys()) == before
    with pytest.raises(EngineError, match="not started"):
        await engine.health()


@pytest.mark.heavy
async def test_a_cpu_without_stand_ins_is_refused(
    sglang_options: SglangOptions, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(ConfigError, match=r"its packages hold no CPU kernels .* 'On a CPU' in the README"):
        await SglangEngine(sglang_options).start(spec(tiny_model, tmp_path))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("server_args", "error", "message"),
    [
        ({"watchdog_timeou": 1}, ConfigError, "no argument 'watchdog_timeou'; .*'watchdog_timeout'"),
        ({"context_length": 100_000}, EngineStartError, "max_model_len is longer|context_length"),
    ],
)
async def test_arguments_that_this_sglang_does_not_take(
    sglang_options: SglangOptions,
    tiny_model: Path,
    tmp_path: Path,
    server_args: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = litter(), descendants().keys()
    with pytest.raises(error, match=message):
        await SglangEngine(sglang_options.model_copy(update={"server_args": server_args})).start(
            spec(tiny_model, tmp_path)
        )
    assert (litter(), descendants().keys()) == before
