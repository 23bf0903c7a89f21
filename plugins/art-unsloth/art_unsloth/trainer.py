"""The Unsloth trainer: Unsloth's model and adapter, trained by art-torch's learner."""

from __future__ import annotations

from functools import partial

from art_torch.train.trainer import LearnerTrainer

from art_unsloth.build import build
from art_unsloth.library import Unsloth
from art_unsloth.options import UnslothTrainerOptions

_DISTRIBUTIONS = ("art-torch", "art-unsloth", "unsloth", "unsloth_zoo", "torch", "transformers", "peft")


class UnslothTrainer(LearnerTrainer):
    """Trains a LoRA adapter with Unsloth; see `art_core.protocols.trainer` for what each call promises."""

    def __init__(self, unsloth: Unsloth, options: UnslothTrainerOptions) -> None:
        super().__init__("unsloth", partial(build, unsloth, options), _DISTRIBUTIONS)
