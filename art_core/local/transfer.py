"""What a local backend does with checkpoints besides training: fork, pull and push."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Unpack

from art_core.backend import Backend
from art_core.client.fork import (
    ForkArgs,
    PullArgs,
    PullRunArgs,
    PushArgs,
    fork_model,
    pull_model,
    pull_run,
    push_model,
    require_bucket,
)
from art_core.client.keyword import check_keywords
from art_core.client.model import Model
from art_core.client.trainable import TrainableModel
from art_core.compose import compose_bucket, compose_store
from art_core.errors import ConfigError
from art_core.fork import ForkSource, ForkTarget, fork_checkpoint
from art_core.local_store import LocalStore
from art_core.loop import fork_into
from art_core.plugins import Plugins
from art_core.protocols.store import CheckpointStore
from art_core.selection import StoreSelection


class LocalTransfer(ABC):
    """The part of a `LocalBackend` that moves checkpoints.

    Args:
        path: Root of all runs.
        store: The backend's own store, as it was given.
        plugins: Where stores are found.
    """

    def __init__(self, path: Path, store: StoreSelection, plugins: Plugins) -> None:
        self._path = path
        self._given_store = store
        self._plugins = plugins

    @abstractmethod
    def _open_backend(self, model: Model[Any]) -> Backend | None:
        """What trains and serves the model, once it is registered."""

    async def _experimental_fork_checkpoint(
        self, model: TrainableModel[Any], from_model: str, **options: Unpack[ForkArgs]
    ) -> None:
        backend = self._open_backend(model)

        async def fork(source: ForkSource, target: ForkTarget) -> None:
            if backend is None:
                await fork_checkpoint(LocalStore(), source, target)
                return
            async with backend.lock:
                await fork_into(backend, source, target)

        await fork_model(self._path, self._bucket, model, from_model, options, fork)

    async def _experimental_pull_model_checkpoint(self, model: Model[Any], **options: Unpack[PullArgs]) -> str:
        return str(await pull_model(self._path, self._bucket, self._own_store, model, options))

    async def _experimental_pull_from_s3(self, model: Model[Any], **options: Unpack[PullRunArgs]) -> None:
        check_keywords("_experimental_pull_from_s3", options, PullRunArgs.__annotations__, ())
        warnings.warn(
            "_experimental_pull_from_s3() is deprecated; call _experimental_pull_model_checkpoint()",
            DeprecationWarning,
            stacklevel=2,
        )
        if options.get("delete") and self._open_backend(model):
            raise ConfigError(f"model {model.name!r} is registered; what it stores is not deleted from under it")
        await pull_run(self._path, self._place(options.get("s3_bucket"), options.get("prefix")), model, options)

    async def _experimental_push_to_s3(self, model: Model[Any], **options: Unpack[PushArgs]) -> None:
        check_keywords("_experimental_push_to_s3", options, PushArgs.__annotations__, ())
        await push_model(self._path, self._place(options.get("s3_bucket"), options.get("prefix")), model, options)

    def _bucket(self, name: str, prefix: str) -> CheckpointStore:
        return compose_bucket(self._given_store, self._plugins, name, prefix)

    def _own_store(self) -> CheckpointStore | None:
        return compose_store(self._given_store, self._plugins)

    def _place(self, bucket: str | None, prefix: str | None) -> CheckpointStore:
        """A bucket that was named; else the backend's own store."""
        require_bucket("s3_bucket", bucket, prefix)
        if bucket:
            return self._bucket(bucket, prefix or "")
        store = self._own_store()
        if store is None:
            raise ConfigError("there is no store to copy to or from; give s3_bucket, or LocalBackend(store=…)")
        return store
