"""Rewards that a judge gives."""

from art.rewards.ruler import TrajectoryScore, ruler, ruler_score_group

__all__ = ["TrajectoryScore", "ruler", "ruler_score_group"]
