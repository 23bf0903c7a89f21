"""Entry point of the `sglang` engine. Light: SGLang is imported by its own processes alone."""

from __future__ import annotations

from collections.abc import Callable

from art_core.capability import FULL, Capabilities, Capability
from art_core.device import driver_is_loaded
from art_core.hookspecs import hookimpl
from art_core.part import EnginePart
from art_core.protocols.engine import InferenceEngine
from art_sglang.library import ENVIRONMENT
from art_sglang.options import SglangOptions


@hookimpl
def art_register_engines(register: Callable[[EnginePart], None]) -> None:
    """Register the SGLang engine."""
    register(
        EnginePart(
            name="sglang",
            options=SglangOptions,
            capabilities=Capabilities(
                {
                    Capability.WEIGHT_PROOF: FULL,
                    Capability.SCORE: FULL,
                    Capability.STREAM_TOKEN_IDS: FULL,
                }
            ),
            # on a CPU it needs stand-ins for kernels that it never calls: a thing to ask for by name
            priority=20 if driver_is_loaded() else 5,
            environment=ENVIRONMENT,
            create=_engine,
        )
    )


def _engine(options: SglangOptions) -> InferenceEngine:
    from art_sglang.engine import SglangEngine

    return SglangEngine(options)
