"""A model and its configuration as what engine and trainer are started with."""

from __future__ import annotations

from typing import Any

from art_core.backend import BackendSpec
from art_core.client.dev import InternalModelConfig, chat_template
from art_core.client.trainable import TrainableModel
from art_core.config import LoRAConfig, Timeouts
from art_core.protocols.engine import EngineSpec
from art_core.protocols.trainer import TrainerSpec
from art_core.run import RunDirectory


def backend_spec(
    model: TrainableModel[Any],
    config: InternalModelConfig,
    base: str,
    lora: LoRAConfig,
    run: RunDirectory,
    timeouts: Timeouts,
) -> BackendSpec:
    """What a model's backend is opened with.

    Args:
        model: The model.
        config: Its `_internal_config`, checked.
        base: Directory of the base model.
        lora: The adapter's shape.
        run: The run, locked.
        timeouts: The backend's.
    """
    template = chat_template(config)
    return BackendSpec(
        name=model.name,
        run=run,
        engine=EngineSpec(
            base_model=base,
            base_name=model.base_model,
            lora_rank=lora.rank,
            log_path=run.log_directory / "engine.log",
            device_ids=_ids(config.get("inference_gpu_ids")),
            chat_template=template,
            chat_template_kwargs=config.get("chat_template_kwargs", {}),
        ),
        trainer=TrainerSpec(
            base_model=base, lora=lora, device_ids=_ids(config.get("trainer_gpu_ids")), chat_template=template
        ),
        timeouts=timeouts,
    )


def _ids(value: list[int] | None) -> tuple[int, ...] | None:
    return tuple(value) if value is not None else None
