"""Entry point of the `torchtune` trainer. Light: torchtune is imported in the trainer's process, when it starts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from art_torch.options import VARIABLES

from art_core.capability import FULL, Capabilities, Capability
from art_core.hookspecs import hookimpl
from art_core.part import TrainerPart
from art_core.protocols.trainer import Trainer
from art_torchtune.options import TorchtuneTrainerOptions
from art_torchtune.requirement import ENVIRONMENT


@hookimpl
def art_register_trainers(register: Callable[[TrainerPart], None]) -> None:
    """Register the torchtune trainer."""
    register(
        TrainerPart(
            name="torchtune",
            options=TorchtuneTrainerOptions,
            capabilities=Capabilities(
                {Capability.OFFLOAD: FULL, Capability.OPTIMIZER_STATE: FULL, Capability.SUPERVISED: FULL}
            ),
            # Below the torch trainer's: torchtune is no longer developed, so it is there for whoever names it.
            priority=1,
            environment=ENVIRONMENT,
            variables=VARIABLES,
            create=_trainer,
        )
    )


def _trainer(options: TorchtuneTrainerOptions) -> Trainer:
    # Before it is imported, for it warns then of every kernel of its own that this machine has no use for.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from art_torchtune.trainer import TorchtuneTrainer

    return TorchtuneTrainer(options)
