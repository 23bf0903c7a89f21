"""A thin door: it opens one backend per trainable model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from art_core.backend import Backend, delete_steps, hold, open_backend, unload_idle
from art_core.client.capture import trained_on
from art_core.client.config import LocalTrainArgs, TrainSFTConfig, lora_config, step_config
from art_core.client.dev import (
    InternalModelConfig,
    OpenAIServerConfig,
    is_external_vllm_mode,
    merged_config,
    validate_internal_config,
)
from art_core.client.model import Model
from art_core.client.pin import pinned, pinned_step
from art_core.client.result import LocalTrainResult
from art_core.client.supervised import supervised_config
from art_core.client.trainable import TrainableModel
from art_core.compose import Choice, compose
from art_core.config import Environment, Timeouts
from art_core.errors import ConfigError
from art_core.events import Observers, audience, observe
from art_core.local.option import FOREIGN, STEP_FIELDS, LocalBackendArgs, check_options
from art_core.local.spec import backend_spec
from art_core.local.transfer import LocalTransfer
from art_core.loop import supervised_step, train_step
from art_core.model_source import resolve_base_model
from art_core.plugins import Plugins
from art_core.retention import Retention
from art_core.run import RunDirectory, run_path
from art_core.selection import is_object
from art_core.trajectory import Trajectory, TrajectoryGroup


@dataclass
class _Session:
    """One trainable model's backend, with the step defaults that its configuration gives."""

    backend: Backend
    defaults: dict[str, Any]


class LocalBackend(LocalTransfer):
    """Trains and serves on this machine.

    Args:
        **options: See `LocalBackendArgs`.

    Raises:
        ConfigError: An option is unknown, or its value none of those allowed.
    """

    def __init__(self, **options: Unpack[LocalBackendArgs]) -> None:
        check_options(options)
        super().__init__(Path(options.get("path") or ".art").absolute(), options.get("store"), Plugins())
        self._options = options
        self._timeouts = options.get("timeouts") or Timeouts()
        # apart from the parts: one that can observe too is told only where that is asked for
        self._audience = Plugins()
        observe(self._audience, options.get("observers", ()))
        self._observers: dict[tuple[str, str], Observers] = {}
        self._sessions: dict[tuple[str, str], _Session] = {}

    async def register(self, model: Model[Any]) -> None:
        """Point the model's files at this backend's root. Starts nothing."""
        model.base_path = str(self._path)
        observers = self._observers[_key(model)] = audience(self._audience, model.report_metrics or ())
        model._tell = observers.log
        model._account.gpu_cost_per_hour_usd = self._options.get("gpu_cost_per_hour_usd")

    async def train(
        self,
        model: TrainableModel[Any],
        trajectory_groups: Iterable[TrajectoryGroup],
        **options: Unpack[LocalTrainArgs],
    ) -> LocalTrainResult:
        """Make one training step and serve it.

        Args:
            model: A registered model.
            trajectory_groups: What the agent did; groups of trajectories that share a task.
            **options: See `LocalTrainArgs`.

        Returns:
            The new step's number, metrics and checkpoint directory. When it returns the step is the default.

        Raises:
            ConfigError: An option is unknown or out of range.
            DataError: The groups can't be trained on; nothing has happened.
            RunError: A stage failed; the last published step goes on serving.
        """
        session = self._session(model)
        config = step_config(options, session.defaults)
        backend = session.backend
        async with backend.lock:
            outcome = await train_step(backend, trained_on(trajectory_groups, model.name), config)
        keep = options.get("save_checkpoint", True)
        path = str(outcome.policy.stored.directory) if keep else None
        step, publications = outcome.policy.step, outcome.publications
        return LocalTrainResult(step, outcome.metrics, checkpoint_path=path, publications=publications)

    @asynccontextmanager
    async def adapter_lease(self, model: TrainableModel[Any], step: int) -> AsyncIterator[None]:
        """Keep a served step served; inside, `model.get_inference_name()` is its name.

        Args:
            model: A registered model.
            step: A served step.

        Raises:
            NoRouteError: The step is not served.
        """
        with self._session(model).backend.route.lease(step), pinned(model, step):
            yield

    @asynccontextmanager
    async def exact_adapter_lease(self, model: TrainableModel[Any], step: int) -> AsyncIterator[None]:
        """As `adapter_lease`; a step that is stored but no longer served is first published again, and proved.

        Args:
            model: A registered model.
            step: A stored step.

        Raises:
            NoRouteError: The step is not stored.
            PublishTimeoutError: Every adapter slot is in use.
        """
        with await hold(self._session(model).backend, step), pinned(model, step):
            yield

    @asynccontextmanager
    async def adapter_retention_lease(self, model: TrainableModel[Any], step: int) -> AsyncIterator[None]:
        """As `adapter_lease`, but names stay as they are: inside, `model.get_inference_name()` is still the newest's.

        Args:
            model: A registered model.
            step: A served step.

        Raises:
            NoRouteError: The step is not served.
        """
        with self._session(model).backend.route.lease(step):
            yield

    async def prune_model_adapters(self, model: TrainableModel[Any], *, retain_steps: Collection[int]) -> None:
        """Unload old steps now, instead of when their slot is needed; never one that is in use, leased or the default.

        Args:
            model: A registered model.
            retain_steps: Steps that stay served besides.

        Raises:
            EngineDiedError: The engine will not come back.
        """
        backend = self._session(model).backend
        async with backend.lock:
            await unload_idle(backend, retain_steps)

    async def close(self) -> None:
        """Stop every engine, trainer and gateway; idempotent."""
        for key in self._observers.keys() - self._sessions.keys():
            await asyncio.to_thread(self._observers.pop(key).close, key[1])
        while self._sessions:
            key, session = self._sessions.popitem()
            del self._observers[key]  # its backend tells them
            await session.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # `with` inside a coroutine can't await: closing goes on in its event loop, and if that ends first everything
        # is killed. `async with` waits.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self.close())
        else:
            self._closing = loop.create_task(self.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _prepare_backend_for_training(
        self, model: TrainableModel[Any], config: OpenAIServerConfig | None
    ) -> tuple[str, str]:
        key = _key(model)
        if key not in self._sessions:
            self._sessions[key] = await self._open(model, merged_config(model._internal_config, config))
        gateway = self._sessions[key].backend.gateway
        return gateway.base_url, gateway.api_key

    def _model_inference_name(self, model: Model[Any], step: int | None = None) -> str:
        if not isinstance(model, TrainableModel):
            return model.inference_model_name or model.name
        return self._session(model).backend.route.inference_name(pinned_step(model) if step is None else step)

    async def _train_sft(
        self,
        model: TrainableModel[Any],
        trajectories: Iterable[Trajectory],
        config: TrainSFTConfig | None,
        dev_config: Mapping[str, Any] | None,
        verbose: bool = False,
    ) -> AsyncIterator[dict[str, float]]:
        session = self._session(model)
        chosen = supervised_config(config, dev_config, session.defaults, model._template_variables())
        async with session.backend.lock:
            outcome = await supervised_step(session.backend, list(trajectories), chosen)
        yield outcome.metrics

    async def _get_step(self, model: TrainableModel[Any]) -> int:
        return self._session(model).backend.route.current().policy.step

    async def _delete_checkpoint_files(self, model: TrainableModel[Any], steps_to_keep: list[int]) -> None:
        backend = self._session(model).backend
        async with backend.lock:
            await delete_steps(backend, steps_to_keep)

    def _open_backend(self, model: Model[Any]) -> Backend | None:
        session = self._sessions.get(_key(model))
        return session.backend if session else None

    def _session(self, model: Model[Any]) -> _Session:
        session = self._sessions.get(_key(model)) if isinstance(model, TrainableModel) else None
        if session is None:
            raise ConfigError(
                f"model {model.name!r} is not registered here; call `await model.register(backend)` first"
            )
        return session

    async def _open(self, model: TrainableModel[Any], config: InternalModelConfig) -> _Session:
        validate_internal_config(config)
        lora = lora_config(model.lora_config)
        trainer_args = dict(config.get("trainer_args") or {})
        defaults = {key: trainer_args.pop(key) for key in list(trainer_args) if key in STEP_FIELDS}
        step_config({}, defaults)  # refuse a bad default before anything starts
        logs = RunDirectory(run_path(self._path, model.project, model.run_name)).log_directory
        parts = compose(self._choice(config, trainer_args), self._plugins, logs, self._timeouts)
        durable = self._options.get("durable", "local")
        if durable == "remote" and parts.store is None:
            raise ConfigError("durable is 'remote', but steps are copied nowhere; give store=…, or set ART_STORE")
        base = await resolve_base_model(model.base_model, Environment.read().cache)
        run = RunDirectory.create_or_open(self._path, model.project, model.run_name, model.base_model, lora)
        try:
            spec = backend_spec(model, config, base, lora, run, self._timeouts)
            spec = replace(spec, durable=durable, retention=self._options.get("retention") or Retention())
            return _Session(await open_backend(parts, spec, self._observers[_key(model)]), defaults)
        except BaseException:
            run.close()
            raise

    def _choice(self, config: InternalModelConfig, trainer_options: dict[str, Any]) -> Choice:
        options = self._options
        if self._sessions and is_object(options.get("engine")):
            raise ConfigError(
                "the engine object given to this LocalBackend serves a model already; give each model a LocalBackend "
                "and an engine of its own, or name an engine"
            )
        runtime = {"runtime": config["vllm_runtime"]} if is_external_vllm_mode(config) else {}
        return Choice(
            engine=options.get("engine"),
            trainer=options.get("trainer"),
            store=options.get("store"),
            publisher=options.get("publisher"),
            engine_options={**(config.get("init_args") or {}), **runtime},
            engine_args=config.get("engine_args") or {},
            trainer_options=trainer_options,
            foreign_options=FOREIGN,
            step_options=STEP_FIELDS,
        )


def _key(model: Model[Any]) -> tuple[str, str]:
    return model.project, model.run_name
