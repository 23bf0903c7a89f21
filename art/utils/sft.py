"""The import path that programs use for supervised fine-tuning's helpers."""

from art_core.client.chat_file import get_file_row_count, iterate_file, train_sft_from_file
from art_core.client.supervised import SFTChunk, create_lr_schedule, create_sft_dataset_iterator

__all__ = [
    "SFTChunk",
    "create_lr_schedule",
    "create_sft_dataset_iterator",
    "get_file_row_count",
    "iterate_file",
    "train_sft_from_file",
]
