"""Contract of a backend, as the client sees it.

Intent. `Model` and `TrainableModel` reach training and serving through this contract alone, so that a program runs
unchanged on this machine or elsewhere.

Who calls, and how often. `model.register(backend)` calls `register` and then, for a trainable model,
`_prepare_backend_for_training` once; when that returns the model answers at the address it gave. The user calls `train`
once per step and `close` at the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from art_core.client.config import TrainSFTConfig
    from art_core.client.dev import OpenAIServerConfig
    from art_core.client.model import Model
    from art_core.client.result import TrainResult
    from art_core.client.trainable import TrainableModel
    from art_core.trajectory import Trajectory


class Backend(Protocol):
    """Trains and serves models; see the module's contract."""

    async def register(self, model: Model[Any]) -> None:
        """Make the model known; starts nothing."""
        ...

    async def close(self) -> None:
        """Stop everything the backend started; idempotent."""
        ...

    @property
    def train(self) -> Callable[..., Awaitable[TrainResult]]:
        """``await backend.train(model, trajectory_groups, **options)``: make a step and serve it."""
        ...

    def exact_adapter_lease(self, model: TrainableModel[Any], step: int) -> AbstractAsyncContextManager[None]:
        """Keep that step served for the block; inside, `model.get_inference_name()` is its name."""
        ...

    async def _prepare_backend_for_training(
        self, model: TrainableModel[Any], config: OpenAIServerConfig | None
    ) -> tuple[str, str]:
        """Start what the model and its ``_internal_config`` need, with what ``register`` was given besides.

        Returns the OpenAI base URL (ending in ``/v1``) and its key.
        """
        ...

    def _model_inference_name(self, model: Model[Any], step: int | None = None) -> str:
        """The name under which the newest step, or that step, answers."""
        ...

    async def _get_step(self, model: TrainableModel[Any]) -> int:
        """The newest served step."""
        ...

    async def _delete_checkpoint_files(self, model: TrainableModel[Any], steps_to_keep: list[int]) -> None:
        """Delete every checkpoint but those."""
        ...

    def _train_sft(
        self,
        model: TrainableModel[Any],
        trajectories: Iterable[Trajectory],
        config: TrainSFTConfig | None,
        dev_config: Mapping[str, Any] | None,
        verbose: bool = False,
    ) -> AsyncIterator[dict[str, float]]:
        """Learn what the assistant said, serve it as the next step, and yield that step's metrics."""
        ...
