"""SGLang's scheduler process, with one question more: fill an adapter's slot now, and say what is in it.

SGLang reads an adapter's files when it is told to, and fills a slot of its pool from them at the first request, inside
the step that serves everybody: what does not fit kills the scheduler there. Here the slot is filled by a call of its
own, whose exceptions are its answer. The call comes in through SGLang's own hooks and its channel for remote calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_sglang.serve.packing import SlotModule, slot_digest

METHOD = "art_fill_slot"
"""The remote call's name; its parameter is `lora_id`."""


def run_scheduler(*arguments: Any, **keywords: Any) -> None:
    """SGLang's entry point of the process, after the hook is registered; called by SGLang in a fresh interpreter."""
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.managers.scheduler.Scheduler.handle_rpc_request"
    HookRegistry.register(target, handle_rpc_request, HookType.AROUND)
    run_scheduler_process(*arguments, **keywords)


def handle_rpc_request(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """Around SGLang's method of that name: answers ours, passes on any other.

    Returns:
        For ours, the message is a JSON list: per rank of the tensor-parallel group the slot's digest, or what failed.
    """
    from sglang.srt.managers.io_struct import RpcReqOutput

    if request.method != METHOD:
        return original(scheduler, request)
    report = _report(scheduler.tp_worker.model_runner.lora_manager, request.parameters["lora_id"])
    return RpcReqOutput(success=True, message=json.dumps(_from_every_rank(scheduler.tp_group, report)))


class Filled(NamedTuple):
    """What is in a slot on one rank."""

    digest: str
    digest_s: float
    """How long the digest took, seconds."""


def fill_slot(manager: Any, lora_id: str) -> Filled:
    """Fill an adapter's slot, unless it is filled, and digest what the layers read from there.

    Args:
        manager: SGLang's LoRAManager.
        lora_id: SGLang's own id of a loaded adapter.
    """
    pool = manager.memory_pool
    if lora_id not in pool.uid_to_buffer_id:
        # what is resident stays: there is a slot for every adapter that is loaded, and one for the base
        manager.fetch_new_loras({lora_id}, running_loras=set(pool.uid_to_buffer_id))
    adapter = manager.loras[lora_id]
    rank = int(adapter.config.r)
    start = time.perf_counter()
    digest = slot_digest(rank, float(adapter.scaling), _modules(manager, pool.get_buffer_id(lora_id), rank))
    return Filled(digest, time.perf_counter() - start)


def _modules(manager: Any, slot: int, rank: int) -> Iterator[SlotModule]:
    """The tensors that forward passes read, by the attributes that they read them by."""
    for layer in manager.lora_modules:
        for name, module in layer.items():
            a: Tensor = module.lora_a[slot]
            b: Tensor = module.lora_b[slot]
            parts = a.shape[0] // b.shape[1]
            yield SlotModule(name, a[: parts * rank], b[:, :rank])


def _report(manager: Any, lora_id: str) -> dict[str, Any]:
    try:
        return fill_slot(manager, lora_id)._asdict()
    except Exception as error:  # noqa: BLE001 - raised here it would end the scheduler; it is raised where it was asked
        return {"error": f"{type(error).__name__}: {error}"}


def _from_every_rank(group: Any, report: dict[str, Any]) -> list[Any]:
    if group.world_size == 1:
        return [report]
    reports: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(reports, report, group=group.cpu_group)
    return reports
