"""What users import."""

from art import dev
from art_core.client.backend import Backend
from art_core.client.config import LoRAConfig, TrainConfig, TrainSFTConfig
from art_core.client.gather import gather_trajectories, gather_trajectory_groups
from art_core.client.model import Model, TrainableModel
from art_core.client.result import LocalTrainResult, TrainResult
from art_core.client.retry import retry
from art_core.trajectory import History, Messages, MessagesAndChoices, Tools, Trajectory, TrajectoryGroup

__all__ = [
    "Backend",
    "History",
    "LoRAConfig",
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
    "dev",
    "gather_trajectories",
    "gather_trajectory_groups",
    "retry",
]
