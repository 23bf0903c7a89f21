"""What can be refused before anything is launched is refused then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from art_vllm import preflight
from art_vllm.argument import Installed
from art_vllm.options import Runtime, VllmOptions
from art_vllm.plugin import capabilities
from art_vllm.preflight import plan

from art_core.capability import Capability
from art_core.config import Environment
from art_core.device import Gpu
from art_core.errors import ConfigError
from art_core.protocols.engine import EngineSpec

HERE = "/usr/bin/env"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two GPUs and vLLM for them. It proves nothing about a GPU: it only answers what is asked first."""
    monkeypatch.setattr(preflight, "gpus", lambda: ([Gpu("a", None, None), Gpu("b", None, None)], None))
    monkeypatch.setattr(preflight, "driver_is_loaded", lambda: True)
    monkeypatch.setattr(preflight, "find_installed", lambda python: Installed(tmp_path, "0.32.0", cpu_build=False))


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with vLLM for a CPU."""
    monkeypatch.setattr(preflight, "driver_is_loaded", lambda: False)
    monkeypatch.setattr(preflight, "find_installed", lambda python: Installed(tmp_path, "0.32.0", cpu_build=True))


def spec(base_model: object, device_ids: tuple[int, ...] | None = None) -> EngineSpec:
    return EngineSpec(str(base_model), "base", 8, Path("/l"), device_ids=device_ids)


def options(**values: Any) -> VllmOptions:
    return VllmOptions(python=HERE, **values)


@pytest.mark.usefixtures("cpu")
def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory is there"):
        plan(options(), spec(tmp_path / "nothing"), Environment())


@pytest.mark.usefixtures("cpu")
def test_gpu_ids_on_a_cpu(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"inference_gpu_ids are \[0\] and the engine runs on the CPU"):
        plan(options(), spec(tiny_model, (0,)), Environment())


@pytest.mark.usefixtures("cpu")
def test_a_build_for_another_device(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"built for a CPU, and device='cuda'.*--device gpu"):
        plan(options(device="cuda"), spec(tiny_model), Environment())


@pytest.mark.usefixtures("cpu")
def test_a_version_that_was_not_tested(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment that somebody has changed by hand, or an interpreter of the user's."""
    monkeypatch.setattr(preflight, "find_installed", lambda python: Installed(tmp_path, "0.31.0", cpu_build=True))
    with pytest.raises(ConfigError, match=r"needs vllm==0.32.\*.*installed: vllm 0.31.0; .*art env remove vllm, then"):
        plan(options(), spec(tiny_model), Environment())


@pytest.mark.usefixtures("cpu")
def test_a_tensor_parallel_size_that_does_not_divide_the_heads(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide the base model's 4 attention heads; allowed: 1, 2, 4"):
        plan(options(tensor_parallel_size=3), spec(tiny_model), Environment())


@pytest.mark.usefixtures("cpu")
def test_a_context_that_the_model_lacks(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len is 513; allowed: 8 to 512"):
        plan(options(max_model_len=513), spec(tiny_model), Environment())


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("ids", "size", "says"),
    [
        ((2,), 1, r"inference_gpu_ids are \[2\]; this machine shows 2 GPUs"),
        ((0, 1), 1, r"requires engine_args.tensor_parallel_size to match len\(inference_gpu_ids\)"),
        (None, 4, "tensor_parallel_size is 4 and this machine shows 2 GPUs"),
    ],
)
def test_gpus_that_are_not_there(tiny_model: Path, ids: tuple[int, ...] | None, size: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(options(tensor_parallel_size=size), spec(tiny_model, ids), Environment())


@pytest.mark.usefixtures("gpus")
def test_chosen_gpus_keep_the_names_that_the_caller_sees(tiny_model: Path) -> None:
    assert plan(options(), spec(tiny_model, (1,)), Environment()).visible == "1"
    assert plan(options(), spec(tiny_model), Environment()).visible is None
    only = Environment(cuda_visible_devices="5,7")
    assert plan(options(), spec(tiny_model, (1,)), only).visible == "7"
    with pytest.raises(ConfigError, match="shows 1 GPUs"):
        plan(options(), spec(tiny_model, (1,)), Environment(cuda_visible_devices="5"))


def test_what_is_declared_depends_on_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "driver_is_loaded", lambda: False)
    assert Capability.SLEEP not in capabilities(VllmOptions())
    assert Capability.SLEEP in capabilities(VllmOptions(device="cuda"))
    assert Capability.SLEEP not in capabilities(VllmOptions(device="cuda", enable_sleep_mode=False))
    assert Capability.WEIGHT_PROOF in capabilities(VllmOptions())
    assert Capability.WEIGHT_PROOF not in capabilities(VllmOptions(weight_proof=False))
    stock = Runtime(mode="external", server_url="http://127.0.0.1:1")
    assert set(capabilities(VllmOptions(runtime=stock)).declared) == {Capability.STREAM_TOKEN_IDS}
    for option, capability in (("worker_extension", Capability.WEIGHT_PROOF), ("score", Capability.SCORE)):
        assert capability in capabilities(VllmOptions(runtime=stock.model_copy(update={option: True})))
