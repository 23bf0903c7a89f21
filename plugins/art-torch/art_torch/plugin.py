"""Entry point of the `torch` engine and trainer. Light: torch is imported when a part is created or started."""

from __future__ import annotations

from collections.abc import Callable

from art_core.capability import FULL, Capabilities, Capability
from art_core.hookspecs import hookimpl
from art_core.part import EnginePart, TrainerPart, missing_modules
from art_core.protocols.engine import InferenceEngine
from art_core.protocols.trainer import Trainer
from art_torch.options import VARIABLES, TorchEngineOptions, TorchTrainerOptions


@hookimpl
def art_register_engines(register: Callable[[EnginePart], None]) -> None:
    """Register the torch engine."""
    register(
        EnginePart(
            name="torch",
            options=TorchEngineOptions,
            capabilities=Capabilities(
                {
                    Capability.WEIGHT_PROOF: FULL,
                    Capability.SCORE: FULL,
                    Capability.STREAM_TOKEN_IDS: FULL,
                }
            ),
            priority=10,
            usable=_usable,
            create=_engine,
        )
    )


@hookimpl
def art_register_trainers(register: Callable[[TrainerPart], None]) -> None:
    """Register the torch trainer."""
    register(
        TrainerPart(
            name="torch",
            options=TorchTrainerOptions,
            capabilities=Capabilities(
                {Capability.OFFLOAD: FULL, Capability.OPTIMIZER_STATE: FULL, Capability.SUPERVISED: FULL}
            ),
            priority=10,
            usable=_usable,
            variables=VARIABLES,
            create=_trainer,
        )
    )


def _usable() -> str | None:
    return missing_modules("torch", "transformers", "peft", fix="pip install art-torch")


def _engine(options: TorchEngineOptions) -> InferenceEngine:
    from art_torch.engine import TorchEngine

    return TorchEngine(options)


def _trainer(options: TorchTrainerOptions) -> Trainer:
    from art_torch.trainer import TorchTrainer

    return TorchTrainer(options)
