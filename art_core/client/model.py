"""What a program trains, or compares with: `TrainableModel` and `Model`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Unpack

from pydantic import ConfigDict, Field, PrivateAttr, SerializeAsAny, SkipValidation
from pydantic_core import PydanticSerializationError

from art_core.client.account import Account
from art_core.client.backend import Backend
from art_core.client.keyword import ConfigT, ModelArgs, StateT, check_keywords
from art_core.client.metric import Added, MetricsBuilder, Pending, context_of
from art_core.client.state import RunState
from art_core.errors import ConfigError
from art_core.trajectory import Trajectory, TrajectoryGroup

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

    from art_core.client.log import LogEntry
    from art_core.run import LogRecord

_log = logging.getLogger("art.client")


class Model(RunState, Generic[ConfigT, StateT]):
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
    """Observers, by the name of their plugin, that are told what `log` writes, besides the backend's own."""

    _backend: Backend | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    _account: Account = PrivateAttr(default_factory=Account)
    _added: Pending = PrivateAttr(default_factory=dict)
    _tell: Callable[[LogRecord], None] | None = PrivateAttr(default=None)
    """Set by a backend that tells observers."""

    def __init__(self, **given: Unpack[ModelArgs[ConfigT]]) -> None:
        values: dict[str, Any] = dict(given)
        check_keywords(type(self).__name__, values, ModelArgs.__annotations__, ("name", "project"))
        self._fill(values)

    def _fill(self, values: dict[str, Any]) -> None:
        values["run_name"] = values.get("run_name") or values["name"]
        if "@" in values["name"]:
            raise ConfigError(f"model name is {values['name']!r}; allowed: without '@', which marks a step")
        super().__init__(**values)

    def safe_model_dump(self, **options: Any) -> dict[str, Any]:
        """As `model_dump`, without the program's own `config`, which need not be plain data."""
        return {**self.model_dump(**options), "config": None}

    async def register(self, backend: Backend) -> None:
        """Make the model known to a backend.

        Raises:
            ConfigError: The program's own `config` can't be written as JSON.
        """
        if self.config is not None:
            try:
                self.config.model_dump_json()
            except PydanticSerializationError as error:
                raise ConfigError(
                    "The model config cannot be serialized to JSON. Please ensure that all fields are JSON "
                    f"serializable and try again. ({error})"
                ) from error
        self._backend = backend
        self._client = None
        await backend.register(self)

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
        from art_core.client.connection import Manner, openai_client

        if self.inference_base_url is None or self.inference_api_key is None:
            raise ConfigError(
                "OpenAI client not yet available on this trainable model. You must call `model.register()` first."
                if self.trainable
                else "In order to create an OpenAI client you must provide an `inference_api_key` and "
                "`inference_base_url`."
            )
        manner = Manner(managed=self.trainable, extra_body=self._extra_body(), answered=self._answered)
        return openai_client(self.inference_base_url, self.inference_api_key, manner)

    def _answered(self, completion: ChatCompletion) -> None:
        """A chat completion has come back."""

    def _extra_body(self) -> dict[str, Any]:
        """What every chat completion asks for besides what the caller writes."""
        return {}

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
        } | ({"extra_body": extra} if (extra := self._extra_body()) else {})

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
            ConfigError: The split is no plain name.
            StoreError: The system refuses.
        """
        from art_core.client.log import LogEntry, as_groups

        if trajectories is None and metrics is None:
            return
        groups = [] if trajectories is None else as_groups(trajectories)
        step = await self.get_step() if step is None else step
        added = self._added.pop(context_of(split), Added())
        taken = self._account.step() if split == "train" else {}
        automatic = {key: value for key, value in taken.items() if key not in added.metrics}
        entry = LogEntry(groups, split, step, {**automatic, **(metrics or {})}, added)
        await asyncio.to_thread(self._write, entry)

    def _write(self, entry: LogEntry) -> None:
        from art_core.client.log import write_log

        record = write_log(self._run(), entry, self._account)
        if self._tell is not None:
            self._tell(replace(record, config=self._config, entity=self.entity))

    def metrics_builder(self, cost_context: str | None = None) -> MetricsBuilder:
        """What adds to the metrics that the next `log` writes.

        Args:
            cost_context: ``"train"`` (the default), ``"eval"`` for the splits ``val`` and ``test``, or another split.
        """
        return MetricsBuilder(cost_context or "train", self._added)

    def activate_metrics_context(self, cost_context: str) -> Token[MetricsBuilder]:
        """Make a builder that of the running code; ``token.var.reset(token)`` takes it back.

        Args:
            cost_context: See `metrics_builder`.
        """
        return self.metrics_builder(cost_context).activate()
