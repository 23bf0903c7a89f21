"""Why SGLang did not start, read from lines that SGLang 0.5.23 and its libraries log."""

from __future__ import annotations

import pytest
from art_sglang.failures import cause, start_error

from art_core.process import ProcessDiedError


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("ModuleNotFoundError: No module named 'art_sglang'", "install art-core and art-sglang into it"),
        ("ModuleNotFoundError: No module named 'sglang'", "art env create sglang"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "lower max_num_seqs"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "lower max_num_seqs"),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "lower max_num_seqs"),
        ("AssertionError: 4 is not divisible by 3", "tensor_parallel_size does not divide"),
        (
            "ValueError: User-specified context_length (9999) is greater than the derived context_length (512).",
            "max_model_len is longer",
        ),
        ("OSError: Can't load the configuration of '/models/x'.", "the base model can't be read"),
        (
            "ValueError: Model architectures ['Foo'] are not supported for now.",
            "does not know the model's architecture",
        ),
    ],
)
def test_known_causes(line: str, advice: str) -> None:
    log = f"INFO: starting\n{line}\nReceived sigquit from a child process."
    assert advice in (cause(log) or "")
    error = start_error(ProcessDiedError(f"process 7 was killed by SIGKILL; last lines of engine.log:\n{log}", -9), log)
    assert advice in str(error) and line in str(error) and error.stage == "start"


def test_what_is_not_known_keeps_its_log() -> None:
    error = start_error(
        ProcessDiedError("process 7 ended with exit status 3; last lines of engine.log:\nboom", 3), "boom"
    )
    assert cause("boom") is None and str(error).startswith("engine 'sglang' did not start: process 7 ended")
