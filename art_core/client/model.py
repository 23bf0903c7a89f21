"""What a program trains, or compares with: `TrainableModel` and `Model`."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Unpack, cast

from pydantic import ConfigDict, Field, PrivateAttr, SerializeAsAny, SkipValidation

from art_core.client.account import Account
from art_core.client.backend import Backend
from art_core.client.config import TrainConfig, lora_config
from art_core.client.dev import InternalModelConfig, OpenAIServerConfig, validate_internal_config
from art_core.client.keyword import ConfigT, ModelArgs, TrainableModelArgs, check_keywords
from art_core.client.result import TrainResult
from art_core.client.spelling import current_spelling
from art_core.client.state import RunState
from art_core.errors import ConfigError
from art_core.trajectory import Trajectory, TrajectoryGroup

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_log = logging.getLogger("art.client")


class Model(RunState, Generic[ConfigT]):
    """Something that answers chat requests, and a place for what it did.

    A model that is only compared with is given its address: ``inference_base_url`` and ``inference_api_key``. A
    `TrainableModel` gets them when it is registered.
    """

    model_config = ConfigDict(extra="forbid")
    entity: str | None = None
    id: str | None = None
    run_id: str | None = None
    config: SkipValidation[SerializeAsAny[ConfigT]] = None  # type: ignore[assignment]  # ConfigT is None then
    """Anything of the program's own that belongs to the model."""
    trainable: bool = False
    inference_api_key: str | None = Field(default=None, repr=False)
    inference_base_url: str | None = None
    inference_model_name: str | None = None
    """Sent in place of `name` where an endpoint knows the model by another one."""
    report_metrics: list[str] | None = None
    """Where else metrics go; nowhere yet."""

    _backend: Backend | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    _account: Account = PrivateAttr(default_factory=Account)

    def __init__(self, **given: Unpack[ModelArgs[ConfigT]]) -> None:
        values: dict[str, Any] = dict(given)
        check_keywords(type(self).__name__, values, ModelArgs.__annotations__, ("name", "project"))
        self._fill(values)

    def _fill(self, values: dict[str, Any]) -> None:
        values["run_name"] = values.get("run_name") or values["name"]
        if "@" in values["name"]:
            raise ConfigError(f"model name is {values['name']!r}; allowed: without '@', which marks a step")
        if values.get("report_metrics"):
            warnings.warn("report_metrics has no effect yet; metrics go to history.jsonl", stacklevel=4)
        super().__init__(**values)

    async def register(self, backend: Backend) -> None:
        """Make the model known to a backend."""
        await self._bind(backend)
        await backend.register(self)

    async def _bind(self, backend: Backend) -> None:
        self._backend = backend
        self._client = None

    def backend(self) -> Backend:
        """The backend that the model is registered with.

        Raises:
            ConfigError: It is with none.
        """
        if self._backend is None:
            raise ConfigError("Model is not registered with the Backend. You must call `model.register()` first.")
        return self._backend

    def openai_client(self) -> AsyncOpenAI:
        """The client that rollouts sample through: waits up to 20 minutes, up to 100,000 requests at once.

        Raises:
            ConfigError: The model has no address yet.
        """
        if self._client is None:
            self._client = self._make_client()
        client: AsyncOpenAI = self._client
        return client

    def _make_client(self) -> AsyncOpenAI:
        from art_core.client.connection import openai_client

        if self.inference_base_url is None or self.inference_api_key is None:
            raise ConfigError(
                "OpenAI client not yet available on this trainable model. You must call `model.register()` first."
                if self.trainable
                else "In order to create an OpenAI client you must provide an `inference_api_key` and "
                "`inference_base_url`."
            )
        return openai_client(self.inference_base_url, self.inference_api_key, managed=self.trainable)

    def get_inference_name(self, step: int | None = None) -> str:
        """The model name to put in a request.

        Args:
            step: None: the newest step, by its own name; else that step's.
        """
        if self._backend is not None:
            return self._backend._model_inference_name(self, step)
        name = self.inference_model_name or self.name
        return name if step is None else f"{name}@{step}"

    def litellm_completion_params(self, step: int | None = None) -> dict[str, Any]:
        """Keywords for ``litellm.acompletion``.

        Args:
            step: See `get_inference_name`.
        """
        name = self.get_inference_name(step)
        return {
            "model": f"hosted_vllm/{name}" if self.trainable else name,
            "base_url": self.inference_base_url,
            "api_key": self.inference_api_key,
            "temperature": 1,
            "extra_body": {"return_token_ids": True} if self.trainable else {},
        }

    async def get_step(self) -> int:
        """The newest served step; 0 for a model that is not trained."""
        return 0

    async def log(
        self,
        trajectories: Iterable[Trajectory | BaseException | TrajectoryGroup] | None = None,
        split: str = "val",
        *,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
    ) -> None:
        """Write trajectories as parquet, and a line of metrics to ``history.jsonl``.

        Args:
            trajectories: Groups, or trajectories and exceptions; None: only metrics are written.
            split: First part of the metrics' names: ``"train"``, ``"val"`` or ``"test"``.
            metrics: Further metrics, e.g. ``result.metrics`` of a training step; they win over the trajectories' own.
            step: None: the newest.

        Raises:
            ConfigError: There is nothing to log, or the split is no plain name.
            StoreError: The system refuses.
        """
        from art_core.client.log import LogEntry, as_groups, write_log

        if trajectories is None and metrics is None:
            raise ConfigError("log() got neither trajectories nor metrics; give at least one")
        groups = [] if trajectories is None else as_groups(trajectories)
        step = await self.get_step() if step is None else step
        taken = self._account.step() if split == "train" else {}
        entry = LogEntry(groups, split, step, {**taken, **(metrics or {})})
        await asyncio.to_thread(write_log, self._run(), entry, self._account)


class TrainableModel(Model[ConfigT], Generic[ConfigT]):
    """A model whose adapter is trained.

    Settings that can be refused are refused here, before anything starts.
    """

    trainable: bool = True
    base_model: str
    """Hub name, local directory, or any other source that the backend knows."""
    lora_config: dict[str, Any] | None = None
    """The adapter's shape, as given: a `LoRAConfig`."""

    _internal_config: InternalModelConfig | None = PrivateAttr(default=None)

    def __init__(self, **given: Unpack[TrainableModelArgs[ConfigT]]) -> None:
        values: dict[str, Any] = dict(given)
        required = ("name", "project", "base_model")
        check_keywords(type(self).__name__, values, TrainableModelArgs.__annotations__, required)
        internal, lora = current_spelling(values.pop("_internal_config", None) or {}, values.get("lora_config"))
        lora_config(lora)
        validate_internal_config(internal)
        self._fill({**values, "lora_config": lora})
        self._internal_config = cast(InternalModelConfig, internal)

    async def register(self, backend: Backend, _openai_client_config: OpenAIServerConfig | None = None) -> None:
        """Start what the model needs; when it returns, the model answers.

        Args:
            backend: Where it is trained and served.
            _openai_client_config: Its ``engine_args`` come on top of ``_internal_config["engine_args"]``.
        """
        config: dict[str, Any] = dict(self._internal_config or {})
        if engine_args := (_openai_client_config or {}).get("engine_args"):
            config["engine_args"] = {**config.get("engine_args", {}), **engine_args}
        await super().register(backend)
        self.inference_base_url, self.inference_api_key = await backend._prepare_backend_for_training(
            self, cast(InternalModelConfig, config)
        )
        self._account.start()
        self._client = None
        self.inference_model_name = backend._model_inference_name(self)

    async def get_step(self) -> int:
        """The newest served step."""
        return await self.backend()._get_step(self)

    async def delete_checkpoints(self, best_checkpoint_metric: str = "val/reward") -> None:
        """Delete every checkpoint but the newest and the best.

        Args:
            best_checkpoint_metric: The best step has the highest mean of this metric in ``history.jsonl``; where no
                line has it, only the newest is kept.
        """
        from art_core.client.log import best_step

        keep = {await self.get_step()}
        best = best_step(self._run().history(), best_checkpoint_metric)
        if best is None:
            _log.warning("no line of history.jsonl has %r; keeping the newest checkpoint only", best_checkpoint_metric)
        else:
            keep.add(best)
        await self.backend()._delete_checkpoint_files(self, sorted(keep))

    async def train(
        self,
        trajectory_groups: Iterable[TrajectoryGroup],
        config: TrainConfig | None = None,
        _config: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> TrainResult:
        """Older form of ``backend.train(model, groups, ...)`` followed by `log`.

        Args:
            trajectory_groups: What the agent did.
            config: Options, those that were set.
            _config: Further keywords of ``backend.train``.
            verbose: Ignored.
        """
        warnings.warn(
            "model.train() is deprecated; call `result = await backend.train(model, groups, ...)` and then "
            "`await model.log(groups, 'train', metrics=result.metrics, step=result.step)`",
            DeprecationWarning,
            stacklevel=2,
        )
        groups = list(trajectory_groups)
        options = {**(config.model_dump(exclude_unset=True) if config else {}), **(_config or {})}
        result = await self.backend().train(self, groups, **options)
        await self.log(groups, "train", metrics=result.metrics, step=result.step)
        return result
