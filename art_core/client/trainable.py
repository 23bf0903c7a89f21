"""What a program trains: `TrainableModel`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Unpack, cast

from pydantic import PrivateAttr

from art_core.client.backend import Backend
from art_core.client.config import TrainConfig, TrainSFTConfig, lora_config
from art_core.client.dev import InternalModelConfig, OpenAIServerConfig, validate_internal_config
from art_core.client.keyword import ConfigT, StateT, TrainableModelArgs, check_keywords
from art_core.client.metric import CostCalculator, charge, no_cost
from art_core.client.model import Model
from art_core.client.result import TrainResult
from art_core.client.spelling import current_spelling
from art_core.trajectory import Trajectory, TrajectoryGroup

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


class TrainableModel(Model[ConfigT, StateT], Generic[ConfigT, StateT]):
    """A model whose adapter is trained.

    Settings that can be refused are refused here, before anything starts.
    """

    trainable: bool = True
    base_model: str
    """Hub name, local directory, or any other source that the backend knows."""
    lora_config: dict[str, Any] | None = None
    """The adapter's shape, as given: a `LoRAConfig`."""

    _internal_config: InternalModelConfig | None = PrivateAttr(default=None)
    _cost_calculator: CostCalculator = PrivateAttr(default_factory=lambda: no_cost)

    def __init__(self, **given: Unpack[TrainableModelArgs[ConfigT]]) -> None:
        values: dict[str, Any] = dict(given)
        required = ("name", "project", "base_model")
        check_keywords(type(self).__name__, values, TrainableModelArgs.__annotations__, required)
        internal, lora = current_spelling(values.pop("_internal_config", None) or {}, values.get("lora_config"))
        lora_config(lora)
        validate_internal_config(internal)
        self._fill({**values, "lora_config": lora})
        self._internal_config = cast(InternalModelConfig, internal)

    @property
    def cost_calculator(self) -> CostCalculator:
        """What a completion of this model costs."""
        return self._cost_calculator

    def set_cost_calculator(self, calculator: CostCalculator | None) -> None:
        """Say what a completion costs; it is added to the active builder's metrics, see `metrics_builder`.

        Args:
            calculator: Of prompt tokens (for every choice), completion tokens and cost context; gives
                ``{"costs/...": usd}``. None: nothing is added.
        """
        self._cost_calculator = calculator or no_cost

    def _answered(self, completion: ChatCompletion) -> None:
        charge(self._cost_calculator, completion)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As pydantic's, with ``_internal_config``."""
        return {**super().model_dump(**options), "_internal_config": self._internal_config}

    def _extra_body(self) -> dict[str, Any]:
        return {
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "chat_template_kwargs": self._template_variables(),
        }

    def _template_variables(self) -> dict[str, Any]:
        """Further variables of the chat template, in every request and in supervised fine-tuning."""
        # templates that know `preserve_thinking` keep what the model thought in earlier turns, so that a chat of many
        # turns stays one sequence; others don't read it
        own = (self._internal_config or {}).get("chat_template_kwargs", {})
        return {"preserve_thinking": True, **own}

    async def register(self, backend: Backend, _openai_client_config: OpenAIServerConfig | None = None) -> None:
        """Start what the model needs; when it returns, the model answers.

        Args:
            backend: Where it is trained and served.
            _openai_client_config: Its ``engine_args`` come on top of ``_internal_config["engine_args"]``.
        """
        self.inference_base_url = self.inference_api_key = self.inference_model_name = None
        await super().register(backend)
        prepared = await backend._prepare_backend_for_training(self, _openai_client_config)
        self.inference_base_url, self.inference_api_key = prepared
        self._account.start()
        self._client = None
        self.inference_model_name = backend._model_inference_name(self)

    async def get_step(self) -> int:
        """The newest served step."""
        return await self.backend()._get_step(self)

    async def delete_checkpoints(self, best_checkpoint_metric: str = "val/reward") -> None:
        """Delete every checkpoint but the newest and the best.

        Args:
            best_checkpoint_metric: The best step has the highest mean of this metric in ``history.jsonl``, of several
                the newest; where no line has it, that is printed and only the newest step is kept.
        """
        from art_core.client.log import best_step

        keep = {await self.get_step()}
        best = best_step(self._run().history(), best_checkpoint_metric)
        if best is None:
            print(f'No "{best_checkpoint_metric}" metric found in history')
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

    async def train_sft(
        self,
        trajectories: Iterable[Trajectory],
        config: TrainSFTConfig | None = None,
        _config: Mapping[str, Any] | None = None,
        verbose: bool = False,
        log_metrics: bool = True,
    ) -> None:
        """Learn what the assistant said in these chats, and serve it as the next step.

        Args:
            trajectories: Chats as messages; rewards are not looked at.
            config: Learning rate, batch size, and which assistant messages are learnt.
            _config: Further options of the update, e.g. ``{"weight_decay": 0.01}``.
            verbose: Ignored.
            log_metrics: Whether the step's metrics are written, under ``train/``.

        Raises:
            ConfigError: An option is unknown or out of range.
            DataError: A trajectory can't be learnt from; nothing has happened.
            RunError: As `LocalBackend.train`.
        """
        async for metrics in self.backend()._train_sft(self, trajectories, config, _config, verbose):
            if log_metrics:
                await self.log(None, "train", metrics=metrics)
