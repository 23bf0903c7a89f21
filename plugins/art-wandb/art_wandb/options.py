"""Options of the W&B store and publisher. Light: imports no client library.

Server and key come as W&B has them: ``WANDB_API_KEY`` or ``wandb login``, and ``WANDB_BASE_URL``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from art_core.config import PartOptions

REGION = "coreweave-us"
"""Where W&B Inference wants the adapters that it serves."""


class WandbStoreOptions(PartOptions):
    """Where the W&B store copies to. A project and a run of ART's are a project and an artifact of W&B's."""

    part: ClassVar[str] = "wandb"
    entity: str | None = None
    """Team or user; None: the key's default entity."""
    storage_region: str | None = REGION
    """Where W&B keeps the files; None: wherever the server does by default. W&B Inference serves from this one."""
    timeout_s: float = Field(default=600.0, gt=0)
    """A call that takes longer is given up, and tried again later."""


class WandbPublisherOptions(WandbStoreOptions):
    """Options of the W&B publisher."""

    base_model: str | None = None
    """What W&B Inference calls the base model; None: the run's own name of it."""
    inference_base_url: str = "https://api.inference.wandb.ai/v1"
    """Where W&B Inference answers."""
