"""Layers that are computed again in the backward pass: slower, with the memory of one layer instead of all."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Recompute each decoder layer.

    Args:
        model: Changed in place. It stays in eval mode otherwise: dropout would make the trained policy another one.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # Layers checkpoint in training mode alone. Set on the layer itself, not on what is in it: there it would
            # switch dropout on.
            module.training = True
