"""What the user's options become in SGLang's own arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from art_sglang.library import ENVIRONMENT
from art_sglang.options import SglangOptions, resolve_device, server_arguments, visible_devices

from art_core.capability import Capability
from art_core.environment.own import own_distribution, unmet
from art_core.environment.spec import pinned_set
from art_core.errors import ConfigError
from art_core.part import EnginePart
from art_core.plugins import load_part
from art_core.protocols.engine import EngineSpec

SPEC = EngineSpec("/models/m", "pypi:m", lora_rank=16, log_path=Path("engine.log"))


def arguments(device: str = "cpu", **options: Any) -> dict[str, Any]:
    return server_arguments(SglangOptions(**options), SPEC, device)


def test_what_the_contract_needs_is_always_set() -> None:
    for device in ("cpu", "cuda"):
        made = arguments(device, max_loras=3)
        assert made["model_path"] == "/models/m" and made["device"] == device
        assert made["enable_lora"] and made["max_lora_rank"] == 16
        assert made["lora_strict_loading"], "mismatched keys would pass in silence"
        assert made["max_loras_per_batch"] == 4, "the base model's requests take a slot too"
        assert made["max_loaded_loras"] >= made["max_loras_per_batch"], "SGLang does not start otherwise"
        assert made["sampling_defaults"] == "openai", "generation_config.json would cut the sampled distribution"
        assert made["sleep_on_idle"]
        assert ":" not in made["served_model_name"], "SGLang does not start with a colon in it"


def test_shared_names_are_translated() -> None:
    made = arguments(
        "cuda",
        max_model_len=512,
        gpu_memory_utilization=0.7,
        tensor_parallel_size=2,
        max_num_seqs=9,
        enforce_eager=True,
    )
    assert made["context_length"] == 512 and made["mem_fraction_static"] == 0.7
    assert made["tp_size"] == 2 and made["max_running_requests"] == 9
    assert made["cuda_graph_backend_decode"] == made["cuda_graph_backend_prefill"] == "disabled"
    assert made["dtype"] == "auto" and "max_total_tokens" not in made and "lora_backend" not in made
    assert arguments("cuda", enable_prefix_caching=False)["disable_radix_cache"]


def test_a_cpu_gets_backends_and_a_cache_that_fit_it() -> None:
    made = arguments("cpu")
    assert made["dtype"] == "float32" and made["lora_backend"] == made["attention_backend"] == "torch_native"
    assert made["max_total_tokens"] == 16384
    assert arguments("cpu", dtype="bfloat16", max_total_tokens=100)["max_total_tokens"] == 100


def test_other_arguments_pass_and_win_but_for_those_that_are_art_s() -> None:
    made = arguments("cpu", server_args={"grammar_backend": "xgrammar", "watchdog_timeout": 9})
    assert made["grammar_backend"] == "xgrammar" and made["watchdog_timeout"] == 9
    with pytest.raises(ConfigError, match="lora_strict_loading, port can't be given"):
        SglangOptions.parse({"server_args": {"port": 1, "lora_strict_loading": False}})


def test_a_gpu_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cuda' and no CUDA driver"):
        resolve_device(SglangOptions(device="cuda"))
    assert resolve_device(SglangOptions()) == "cpu"


@pytest.mark.parametrize(
    ("ids", "tensor_parallel_size", "present", "visible", "expected"),
    [
        (None, 1, 2, None, "0"),
        (None, 2, 2, None, "0,1"),
        ((1,), 1, 2, None, "1"),
        ((1, 0), 2, 2, None, "1,0"),
        ((1,), 1, 8, "5, 7", "7"),
        ((0,), 1, 8, "GPU-1f,", "GPU-1f"),
        ((2,), 1, 2, None, ConfigError("GPU 2 is not here: this process sees 2")),
        ((0,), 1, 0, None, ConfigError("GPU 0 is not here: this process sees 0")),
        ((0,), 1, 8, "", ConfigError("GPU 0 is not here: this process sees 0")),
        ((0, 1), 1, 2, None, ConfigError(r"inference_gpu_ids are \[0, 1\] and tensor_parallel_size is 1")),
        ((0,), 2, 2, None, ConfigError("as many GPUs as share the model")),
    ],
)
def test_gpus_are_counted_as_this_process_sees_them(
    ids: tuple[int, ...] | None, tensor_parallel_size: int, present: int, visible: str | None, expected: object
) -> None:
    options = SglangOptions(tensor_parallel_size=tensor_parallel_size)
    if isinstance(expected, ConfigError):
        with pytest.raises(ConfigError, match=str(expected)):
            visible_devices(options, ids, present, visible)
    else:
        assert visible_devices(options, ids, present, visible) == expected


def test_the_part_is_light_and_says_what_it_can() -> None:
    part = load_part("engine", "sglang")
    assert isinstance(part, EnginePart) and part.environment is ENVIRONMENT
    assert Capability.WEIGHT_PROOF in part.capabilities and Capability.SLEEP not in part.capabilities
    code = "import sys, art_sglang.plugin, art_sglang.engine; sys.exit(not {'torch', 'sglang'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_pinned_sets_hold_the_version_that_fits_and_what_art_needs(device: str) -> None:
    versions = pinned_set(ENVIRONMENT, device).versions
    assert unmet([own_distribution(name) for name in ENVIRONMENT.distributions], versions, "3.11.7") == []
    assert ENVIRONMENT.library["sglang"] == f"=={versions['sglang']}"
