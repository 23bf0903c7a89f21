"""What rollouts and training scripts use besides."""

from art_core.client.dataset import DatasetBatch, iterate_dataset
from art_core.client.retry import retry

__all__ = ["DatasetBatch", "iterate_dataset", "retry"]
