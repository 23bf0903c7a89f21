"""The import path that programs use for trajectories."""

from art_core.chat import ChatCompletionsExchange, History, TrajectoryExchanges
from art_core.chat import History as LegacyHistory
from art_core.client.capture import current_trajectory, trajectory
from art_core.client.group import trajectory_group
from art_core.tally import RecordedException as PydanticException
from art_core.trajectory import MetadataValue, Trajectory, TrajectoryGroup, no_capture

__all__ = [
    "ChatCompletionsExchange",
    "History",
    "LegacyHistory",
    "MetadataValue",
    "PydanticException",
    "Trajectory",
    "TrajectoryExchanges",
    "TrajectoryGroup",
    "current_trajectory",
    "no_capture",
    "trajectory",
    "trajectory_group",
]
