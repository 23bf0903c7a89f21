"""Types and checks of ``TrainableModel(_internal_config=...)``."""

from art_core.client.dev import (
    EngineArgs,
    InitArgs,
    InternalModelConfig,
    LoRAConfig,
    OpenAIServerConfig,
    PeftArgs,
    RolloutWeightUpdateMode,
    ServerArgs,
    TrainConfig,
    TrainerArgs,
    TrainSFTConfig,
    VllmRuntimeArgs,
    is_dedicated_mode,
    is_external_vllm_mode,
    validate_dedicated_config,
)

__all__ = [
    "EngineArgs",
    "InitArgs",
    "InternalModelConfig",
    "LoRAConfig",
    "OpenAIServerConfig",
    "PeftArgs",
    "RolloutWeightUpdateMode",
    "ServerArgs",
    "TrainConfig",
    "TrainSFTConfig",
    "TrainerArgs",
    "VllmRuntimeArgs",
    "is_dedicated_mode",
    "is_external_vllm_mode",
    "validate_dedicated_config",
]
