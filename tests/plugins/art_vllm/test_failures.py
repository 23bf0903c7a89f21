"""Every row of the table of failures is met by a line of the kind it was made for."""

from __future__ import annotations

import httpx
import pytest
from art_vllm.failures import _START, refusal, start_cause
from art_vllm.launch import said

from art_core.errors import CheckpointCorruptError, EngineError, EngineUnavailableError, NoRouteError

LOGS = {
    "api_server.py: error: unrecognized arguments: --sed=3": "does not know the argument --sed=3",
    "server.py: error: argument --dtype: invalid choice: 'x' (choose from auto)": "value of --dtype (invalid choice",
    "ModuleNotFoundError: No module named 'art_vllm'": "does not have art_vllm",
    "RuntimeError: operator torchvision::nms does not exist": "built for another torch",
    "ModuleNotFoundError: No module named 'uvloop'": "lacks uvloop; build it anew",
    "RuntimeError: The NVIDIA driver on your system is too old (found version 1)": "update the driver",
    "RuntimeError: CUDA error: invalid device ordinal": "GPU was named that is not there",
    "RuntimeError: Failed to infer device type, please set": "it found no GPU",
    "ValueError: World size (4) is larger than the number of available GPUs (2) in this node.": "needs 4 GPUs",
    "Total number of attention heads (9) must be divisible by tensor parallel size (2).": "2 does not divide",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB": "ran out of memory",
    "ValueError: No available memory for the cache blocks. Try increasing": "too little memory for keys and values",
    "User-specified max_model_len (9000) is greater than the derived max_model_len (x=1)": "9000 is longer",
    "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0": "(head_dim=16 isa=2",
    "ValueError: MambaForCausalLM does not support LoRA yet.": "no LoRA for MambaForCausalLM",
    "OSError: [Errno 98] Address already in use": "port is taken",
    "huggingface_hub.errors.LocalEntryNotFoundError: Got: ConnectError": "neither a local directory nor a hub name",
    "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge": "files are not whole",
}


@pytest.mark.parametrize(("line", "cause"), LOGS.items())
def test_a_line_of_the_log_names_the_cause(line: str, cause: str) -> None:
    log = f"(APIServer pid=1) INFO some\n(EngineCore pid=2) ERROR {line}\nRuntimeError: Engine core init failed."
    assert cause in (start_cause(log) or "")


def test_every_row_has_a_line() -> None:
    unmet = [row.pattern.pattern for row in _START if not any(row.pattern.search(line) for line in LOGS)]
    assert not unmet


def test_a_log_that_says_nothing_known_has_no_cause() -> None:
    assert start_cause("INFO: all is well\nValueError: something new") is None


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (401, {"error": "Unauthorized"}, EngineUnavailableError, "another key"),
        (503, {}, EngineUnavailableError, "status 503"),
        (500, {"error": {"message": "EngineCore encountered an issue. See"}}, EngineUnavailableError, "EngineCore"),
        (404, {"error": {"message": "The model `m@1` does not exist."}}, NoRouteError, "m@1"),
        (404, {"error": {"message": "the model 'm@1' is not served"}}, NoRouteError, "m@1"),
        (404, {"detail": "Not Found"}, EngineError, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (
            500,
            {"error": {"message": "Worker failed with error 'LoRA rank 16 is greater than max_lora_rank 8.'"}},
            EngineError,
            "--max-lora-rank 16",
        ),
        (500, {"error": {"message": "Worker failed with error 'LoRA is not enabled.'"}}, EngineError, "--enable-lora"),
        (
            404,
            {"error": {"message": "Loading lora m@1 failed: No adapter found for <path>"}},
            EngineError,
            "server_checkpoint_root",
        ),
        (400, {"error": {"message": "expected target modules in ['q']"}}, CheckpointCorruptError, "expected target"),
        (400, {"error": {"message": "The lora adapter 'm@1' has already been loaded"}}, EngineError, "already"),
    ],
)
def test_an_answer_is_an_error_of_ours(status: int, body: object, error: type[Exception], says: str) -> None:
    made = refusal(httpx.Response(status, json=body), "load adapter 'm@1'")
    assert type(made) is error
    assert str(made).startswith("engine 'vllm' could not load adapter 'm@1': ")
    assert says in str(made)


def test_an_answer_that_is_no_json_is_shown_as_it_is() -> None:
    assert "Internal Server Error" in str(refusal(httpx.Response(500, text="Internal Server Error"), "sleep"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "(APIServer pid=11320) INFO 11-26 05:37:22 [compilation.py:317] Enabled custom fusions: norm_quant",
            ": Enabled custom fusions: norm_quant",
        ),
        ("(EngineCore pid=16015) INFO 11-26 05:37:53 [ompmultiprocessing.py:185] \tcpus=[]", ": cpus=[]"),
        ("Loading weights: 50%", ": Loading weights: 50%"),
        ("", ""),
    ],
)
def test_what_vllm_says_while_it_starts(line: str, expected: str) -> None:
    assert said(line) == expected
