"""Every error that ART raises on purpose.

    ArtError
    ├ ConfigError (ValueError)
    ├ PluginError
    │ ├ PluginNotFoundError (LookupError)
    │ ├ PluginLoadError (ImportError)
    │ ├ PluginConflictError
    │ ├ PluginContractError (TypeError)
    │ ├ PluginUnusableError
    │ ├ EnvironmentBuildError
    │ └ CapabilityError
    ├ DataError (ValueError)
    │ ├ TrajectoryError
    │ │ └ TokenizationError
    │ └ BatchError
    └ RunError (RuntimeError)
      ├ EngineError
      │ ├ EngineStartError
      │ ├ EngineUnavailableError     retryable
      │ │ ├ EngineDiedError
      │ │ └ LocalServingUnavailableError   retryable
      │ └ StaleWeightsError
      ├ TrainerError
      │ ├ TrainerStartError
      │ ├ TrainerUnavailableError    retryable
      │ ├ OutOfMemoryError
      │ └ NonFiniteLossError
      ├ CheckpointError
      │ └ CheckpointCorruptError
      ├ StoreError
      │ ├ CheckpointNotFoundError (LookupError)
      │ ├ CommitConflictError
      │ ├ RunLockedError
      │ └ StoreUnavailableError      retryable
      ├ PublishError
      │ └ PublishTimeoutError (TimeoutError)   retryable
      ├ SwapError
      └ RouteError
        └ NoRouteError (LookupError)

A message says what failed, the value seen, the values allowed and the next step to take.
Every class pickles, and crosses a process boundary as JSON (`to_wire`, `from_wire`).

To add one: 1. put the class under its parent, one sentence as docstring; 2. add it to the tree above;
3. `tests/architecture/test_errors.py` holds both together; 4. name it in `Raises:` where it is raised;
5. provoke it in `tests/flow/test_errors_provoked.py`.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from typing import Any, ClassVar


class ArtError(Exception):
    """Root of every error ART raises on purpose."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed if it is simply made again."""


class ConfigError(ArtError, ValueError):
    """A setting is unknown, missing or out of range; raised before anything starts."""


class PluginError(ArtError):
    """A plugin can't be used."""


class PluginNotFoundError(PluginError, LookupError):
    """No installed distribution offers the plugin that was named."""


class PluginLoadError(PluginError, ImportError):
    """The named plugin is installed but its entry point can't be imported."""


class PluginConflictError(PluginError):
    """Two distributions offer a plugin under one name."""


class PluginContractError(PluginError, TypeError):
    """A plugin registers something that does not keep the contract."""


class PluginUnusableError(PluginError):
    """A part is installed and can't work on this machine, for the reason that it gives itself."""


class EnvironmentBuildError(PluginError):
    """A managed environment can't be built or removed, or what enters it does not fit."""


class CapabilityError(PluginError):
    """Something was asked of a part that it does not declare."""


class DataError(ArtError, ValueError):
    """What the agent handed in can't be trained on."""


class TrajectoryError(DataError):
    """A trajectory or group is unusable: no choices, a bad reward, an unknown policy step."""


class TokenizationError(TrajectoryError):
    """A choice lacks the sampled token ids or logprobs, or they don't fit together."""


class BatchError(DataError):
    """A batch breaks its invariants: shapes, dtypes, ranges."""


class RunError(ArtError, RuntimeError):
    """Something failed while a run was under way.

    Args:
        message: What failed, the value seen, the next step to take.
        stage: The stage of the straight line, e.g. ``"publish"``.
        run: The run's name.
        step: The training step that was being made or served.
    """

    def __init__(
        self, message: str, *, stage: str | None = None, run: str | None = None, step: int | None = None
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.run = run
        self.step = step


class EngineError(RunError):
    """The inference engine failed."""


class EngineStartError(EngineError):
    """The inference engine did not come up."""


class EngineUnavailableError(EngineError):
    """The inference engine does not answer, or has died."""

    retryable = True


class EngineDiedError(EngineUnavailableError):
    """The inference engine's process has ended, or it has lost what it served; it must be started again."""

    retryable = False


class LocalServingUnavailableError(EngineUnavailableError):
    """The address that serves a trained model can't be reached: its backend is closed, or its process has ended."""


class StaleWeightsError(EngineError):
    """The engine does not serve the weights that were trained; the route has not moved."""


class TrainerError(RunError):
    """The trainer failed."""


class TrainerStartError(TrainerError):
    """The trainer did not come up."""


class TrainerUnavailableError(TrainerError):
    """The trainer does not answer, or has died; the next step starts it again."""

    retryable = True


class OutOfMemoryError(TrainerError):
    """The step did not fit in memory; weights and optimizer are as they were."""


class NonFiniteLossError(TrainerError):
    """Loss or gradient is NaN or infinite; weights and optimizer are as they were."""


class CheckpointError(RunError):
    """A checkpoint can't be made or read."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint's files differ from its manifest."""


class StoreError(RunError):
    """The checkpoint store failed."""


class CheckpointNotFoundError(StoreError, LookupError):
    """The store holds no whole checkpoint for that step."""


class CommitConflictError(StoreError):
    """Another checkpoint already stands at that step with other content."""


class RunLockedError(StoreError):
    """Another process holds the run's directory."""


class StoreUnavailableError(StoreError):
    """The store can't be reached or written right now."""

    retryable = True


class PublishError(RunError):
    """A committed step could not be published; the previous step goes on serving."""


class PublishTimeoutError(PublishError, TimeoutError):
    """The engine had no free adapter slot in time; the step is committed and can be published again."""

    retryable = True


class SwapError(RunError):
    """Handing the GPU from engine to trainer, or back, failed."""


class RouteError(RunError):
    """The route table refused."""


class NoRouteError(RouteError, LookupError):
    """No served policy answers to that model name."""


def nearest(seen: str, allowed: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest allowed one, and all of them unless they are very many.

    Args:
        seen: The name that was given.
        allowed: The names that would have been right.

    Returns:
        For example ``"did you mean 'file'? known: file, reload"``.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(seen, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint.strip() if hint and len(names) > 60 else f"{hint}known: {', '.join(names) or 'none'}"


def to_wire(error: BaseException) -> dict[str, Any]:
    """An error as plain JSON data, with its traceback as text.

    Args:
        error: Any exception; one that is not an `ArtError` keeps only its name and message.

    Returns:
        ``{"type", "message", "fields", "traceback"}``.
    """
    fields = {k: getattr(error, k) for k in ("stage", "run", "step") if getattr(error, k, None) is not None}
    return {
        "type": type(error).__name__,
        "message": str(error),
        "fields": fields,
        "traceback": "".join(traceback.format_exception(error)),
    }


def from_wire(data: dict[str, Any], fallback: type[RunError] = RunError) -> ArtError:
    """The error that `to_wire` described, with the remote traceback as its note.

    Args:
        data: What `to_wire` made.
        fallback: Class to use where the type is not one of ours.

    Returns:
        The rebuilt error, to be raised by the caller.
    """
    cls = _classes().get(data["type"])
    if cls is None:
        error: ArtError = fallback(f"{data['type']}: {data['message']}")
    elif issubclass(cls, RunError):
        error = cls(data["message"], **data["fields"])
    else:
        error = cls(data["message"])
    error.add_note(f"in the other process:\n{data['traceback']}")
    return error


def _classes() -> dict[str, type[ArtError]]:
    found: dict[str, type[ArtError]] = {}
    todo: list[type[ArtError]] = [ArtError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found
