"""The import path that programs use for models."""

from art_core.client.model import Model
from art_core.client.trainable import TrainableModel

__all__ = [
    "Model",
    "TrainableModel",
]
