"""The import path that programs use for metrics."""

from art_core.client.metric import MetricsBuilder

__all__ = [
    "MetricsBuilder",
]
