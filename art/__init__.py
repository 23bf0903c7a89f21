"""What users import."""

from art import dev
from art_core.chat import History, Messages, MessagesAndChoices, Tools
from art_core.client.backend import Backend
from art_core.client.capture import (
    capture_yielded_trajectory,
    current_trajectory,
    trajectory,
    yield_trajectory,
)
from art_core.client.config import LoRAConfig, TrainConfig, TrainSFTConfig
from art_core.client.gather import gather_trajectories, gather_trajectory_groups
from art_core.client.group import trajectory_group, trajectory_group_batches
from art_core.client.model import Model
from art_core.client.result import LocalTrainResult, TrainResult
from art_core.client.retry import retry
from art_core.client.trainable import TrainableModel
from art_core.errors import LocalServingUnavailableError
from art_core.trajectory import Trajectory, TrajectoryGroup, no_capture

__all__ = [
    "Backend",
    "History",
    "LoRAConfig",
    "LocalServingUnavailableError",
    "LocalTrainResult",
    "Messages",
    "MessagesAndChoices",
    "Model",
    "Tools",
    "TrainConfig",
    "TrainResult",
    "TrainSFTConfig",
    "TrainableModel",
    "Trajectory",
    "TrajectoryGroup",
    "capture_yielded_trajectory",
    "current_trajectory",
    "dev",
    "gather_trajectories",
    "gather_trajectory_groups",
    "no_capture",
    "retry",
    "trajectory",
    "trajectory_group",
    "trajectory_group_batches",
    "yield_trajectory",
]
