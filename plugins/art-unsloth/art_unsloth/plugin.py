"""Entry point of the `unsloth` trainer. Light: Unsloth is imported in the trainer's own process, when it starts."""

from __future__ import annotations

from collections.abc import Callable

from art_core.capability import FULL, Capabilities, Capability
from art_core.config import Environment
from art_core.device import driver_is_loaded
from art_core.hookspecs import hookimpl
from art_core.part import TrainerPart
from art_core.protocols.trainer import Trainer
from art_unsloth.options import UnslothTrainerOptions, require_supported, variables
from art_unsloth.requirement import ENVIRONMENT


@hookimpl
def art_register_trainers(register: Callable[[TrainerPart], None]) -> None:
    """Register the Unsloth trainer."""
    register(
        TrainerPart(
            name="unsloth",
            options=UnslothTrainerOptions,
            capabilities=Capabilities(
                {Capability.OFFLOAD: FULL, Capability.OPTIMIZER_STATE: FULL, Capability.SUPERVISED: FULL}
            ),
            # it is made for GPUs; on a CPU it is there for whoever names it
            priority=20 if driver_is_loaded() else 5,
            environment=ENVIRONMENT,
            variables=variables(Environment.read().cache),
            create=_trainer,
        )
    )


def _trainer(options: UnslothTrainerOptions) -> Trainer:
    from art_unsloth.library import load

    require_supported(options.device, options)
    # Before anything else of the trainer: art-torch imports transformers, which Unsloth patches while it is imported.
    unsloth = load(options.device)
    from art_unsloth.trainer import UnslothTrainer

    return UnslothTrainer(unsloth, options)
