"""The import path that programs use for `iterate_dataset`."""

from art_core.client.dataset import DatasetBatch, iterate_dataset

__all__ = ["DatasetBatch", "iterate_dataset"]
