"""Entry point of the `vllm` engine. Light: vLLM is never imported in this process."""

from __future__ import annotations

from collections.abc import Callable

from art_core.capability import FULL, Capabilities, Capability, Support
from art_core.device import driver_is_loaded
from art_core.hookspecs import hookimpl
from art_core.part import EnginePart
from art_core.protocols.engine import InferenceEngine
from art_vllm.options import VllmOptions
from art_vllm.requirement import ENVIRONMENT


@hookimpl
def art_register_engines(register: Callable[[EnginePart], None]) -> None:
    """Register the vLLM engine."""
    register(
        EnginePart(
            name="vllm",
            options=VllmOptions,
            capabilities=capabilities(VllmOptions()),
            capabilities_with=capabilities,
            # it is made for GPUs; on a CPU, where it takes a minute to start, it is there for whoever names it
            priority=20 if driver_is_loaded() else 5,
            environment=ENVIRONMENT,
            create=_engine,
        )
    )


def capabilities(options: VllmOptions) -> Capabilities:
    """What the engine declares with these options."""
    from art_vllm.preflight import wants_cuda

    declared: dict[Capability, Support] = {Capability.STREAM_TOKEN_IDS: FULL}
    if not options.external or options.runtime.score:
        declared[Capability.SCORE] = FULL
    if options.weight_proof and (not options.external or options.runtime.worker_extension):
        declared[Capability.WEIGHT_PROOF] = FULL
    if options.enable_sleep_mode and not options.external and wants_cuda(options):
        declared[Capability.SLEEP] = FULL
    return Capabilities(declared)


def _engine(options: VllmOptions) -> InferenceEngine:
    from art_vllm.engine import VllmEngine

    return VllmEngine(options, capabilities(options))
