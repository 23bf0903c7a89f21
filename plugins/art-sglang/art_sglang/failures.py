"""Why SGLang did not come up, read from its log: its processes end with the reason in it.

What goes wrong later, and as what it is reported, stands in `art_core.engine_front`. Besides, SGLang's own answers to
requests go out as it gives them, and where one of its processes ends all of them do: an `EngineDiedError`.
"""

from __future__ import annotations

import re

from art_core.errors import EngineStartError
from art_core.process import ProcessError

_CAUSES = (
    (
        r"No module named '(art_core|art_sglang)'",
        "the interpreter lacks ART itself; install art-core and art-sglang into it, or leave the option 'python' out "
        "and use a managed environment: art env create sglang",
    ),
    (
        r"No module named 'sglang'",
        "the interpreter holds no SGLang; try: art env create sglang",
    ),
    (
        r"OutOfMemoryError|out of memory|Not enough memory|DefaultCPUAllocator: can't allocate",
        "there is too little memory: lower max_num_seqs, max_model_len, max_total_tokens or max_loras, or let more "
        "GPUs share the model (tensor_parallel_size)",
    ),
    (
        r"is not divisible by|not divisible|must be divisible",
        "tensor_parallel_size does not divide the model; choose a divisor of its attention heads",
    ),
    (
        r"User-specified context_length .* is greater than the derived context_length",
        "max_model_len is longer than the model's own context; lower it",
    ),
    (
        r"Can't load the configuration|does not appear to have a file named|is not a valid model identifier|"
        r"couldn't connect to|LocalEntryNotFoundError",
        "the base model can't be read; give a local directory in Hugging Face layout, or a hub name that is cached",
    ),
    (
        r"Model architectures? .* (are|is) not supported",
        "this version of SGLang does not know the model's architecture",
    ),
)
"""A line of SGLang's log, and what it means for whoever configured it."""


def cause(log: str) -> str | None:
    """What a log says about why SGLang did not come up, with what to do about it; None where nothing known is in it."""
    return next((meaning for pattern, meaning in _CAUSES if re.search(pattern, log, re.IGNORECASE)), None)


def start_error(error: ProcessError, log: str) -> EngineStartError:
    """The error of a process that ended, or did not announce itself, while it started.

    Args:
        error: Its message ends with the log's last lines.
        log: More of them.
    """
    known = cause(log)
    return EngineStartError(f"engine 'sglang' did not start: {f'{known} — ' if known else ''}{error}", stage="start")
