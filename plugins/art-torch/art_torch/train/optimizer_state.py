"""AdamW and its state, kept by parameter name, so that a run resumes exactly where it was saved."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from art_core.checkpoint import OPTIMIZER
from art_core.errors import CheckpointCorruptError
from art_core.step import StepConfig
from art_torch.tensor_file import read_metadata, read_tensors

LAYOUT = "adamw by peft name, 1"
"""How the state is laid out in its file; every trainer that keeps its state in this class goes on with the others'.
The file's only entry of metadata: safetensors writes several in no fixed order, and equal states have equal bytes."""

_log = logging.getLogger("art.trainer")


class Optimizer:
    """AdamW over named parameters; rates and decays come anew with every step.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (arXiv:1711.05101), algorithm 2.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._adamw = torch.optim.AdamW(list(parameters.values()), foreach=True)
        for parameter in parameters.values():
            # What AdamW would make at its first step; made here, a state has the same tensors at every step.
            self._adamw.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def update(self, config: StepConfig, learning_rate: float) -> None:
        """One update from the parameters' gradients.

        Args:
            config: Decays and floor.
            learning_rate: Step size of this update.
        """
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
            group["betas"] = (config.adam_beta1, config.adam_beta2)
            group["eps"] = config.adam_epsilon
            group["weight_decay"] = config.weight_decay
        self._adamw.step()

    def clear_gradients(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The live state, ``<field>.<parameter>``: first and second moments and the number of updates."""
        return {
            f"{field}.{name}": value
            for name, parameter in self._parameters.items()
            for field, value in self._adamw.state[parameter].items()
        }

    def reset(self) -> None:
        """The state before the first update."""
        for value in self.tensors().values():
            value.zero_()

    def read(self, directory: Path) -> dict[str, Tensor] | None:
        """Read and check what `files` gave; the state is not changed.

        Returns:
            The tensors; None where the directory has no optimizer file, or one whose state is laid out in another way:
            that is said in a warning.

        Raises:
            CheckpointCorruptError: The file is damaged or belongs to other parameters.
        """
        path = directory / OPTIMIZER
        if not os.path.lexists(path):
            return None
        if (layout := read_metadata(path).get("layout")) != LAYOUT:
            _log.warning(
                "%s holds an optimizer state laid out as %r, and this trainer goes on with %r alone: the adapter is "
                "the saved one, and Adam starts afresh",
                path,
                layout,
                LAYOUT,
            )
            return None
        tensors = read_tensors(path, self.tensors())
        for name, value in tensors.items():
            if not name.startswith("exp_avg.") and (value < 0).any():
                raise CheckpointCorruptError(f"{path.name}: tensor {name!r} has a negative value", stage="train")
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `read` gave."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def files(self) -> dict[str, bytes]:
        """optimizer.safetensors; the same state gives the same bytes."""
        return {OPTIMIZER: save({name: value.cpu() for name, value in self.tensors().items()}, {"layout": LAYOUT})}
