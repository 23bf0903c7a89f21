"""What rollouts and training scripts use besides."""

from art.utils.iterate_dataset import DatasetBatch, iterate_dataset
from art.utils.limit_concurrency import limit_concurrency
from art.utils.retry import retry

__all__ = ["DatasetBatch", "iterate_dataset", "limit_concurrency", "retry"]
