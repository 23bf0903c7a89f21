"""A plugin of SGLang that makes it fill slots wrongly, in the ways that the proofs must catch. Only for tests.

Its scheduler loads it by its entry point, and asks the file named by ART_TEST_FAULT what to do with the next adapter.
While the file named by ART_TEST_HOLD exists it does everything but go on with requests, by SGLang's own means.
"""

import os
from pathlib import Path

_previous = []


def register():
    """Called by SGLang in each of its processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.lora.mem_pool.LoRAMemoryPool.load_lora_weight_to_buffer"
    HookRegistry.register(target, fill, HookType.AROUND)
    if "ART_TEST_HOLD" in os.environ:
        target = "sglang.srt.managers.scheduler.Scheduler.ingest_requests"
        HookRegistry.register(target, hold, HookType.AROUND)


def hold(original, scheduler, *arguments):
    """Around what the scheduler does first in each of its turns."""
    original(scheduler, *arguments)
    scheduler._engine_paused = Path(os.environ["ART_TEST_HOLD"]).exists()


def fill(original, pool, uid, slot, adapter, *rest):
    """Around SGLang's filling of one slot."""
    fault = Path(os.environ["ART_TEST_FAULT"]).read_text() if uid is not None else ""
    if fault == "another step":
        original(pool, uid, slot, _previous[-1], *rest)
    elif fault != "nothing is loaded":
        original(pool, uid, slot, adapter, *rest)
    if fault == "the base answers":
        for buffers in (*pool.A_buffer.values(), *pool.B_buffer.values()):
            for tensor in buffers:
                tensor[slot].zero_()
    elif fault == "q and k are swapped":
        rank = adapter.config.r
        for tensor in pool.A_buffer["qkv_proj"]:
            tensor[slot, : 2 * rank] = tensor[slot, : 2 * rank].roll(rank, 0)
    elif fault == "another scale":
        adapter.scaling *= 1.5
    if uid is not None and not fault:
        _previous.append(adapter)
