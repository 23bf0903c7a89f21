"""The import path that programs use for gathering rollouts."""

from art_core.client.gather import gather_trajectories, gather_trajectory_groups

__all__ = [
    "gather_trajectories",
    "gather_trajectory_groups",
]
