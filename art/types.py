"""The import path that programs use for the types of messages, options and results."""

from art_core.chat import Message, MessageOrChoice, Messages, MessagesAndChoices, Tools
from art_core.client.config import TrainConfig, TrainSFTConfig
from art_core.client.result import LocalTrainResult, TrainResult

__all__ = [
    "LocalTrainResult",
    "Message",
    "MessageOrChoice",
    "Messages",
    "MessagesAndChoices",
    "Tools",
    "TrainConfig",
    "TrainResult",
    "TrainSFTConfig",
]
