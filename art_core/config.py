"""Settings, their defaults and their limits. The only room that reads environment variables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from art_core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Environment:
    """What ART reads from environment variables, all of it, once."""

    engine: str | None = None
    """``ART_ENGINE``: name of the engine where the caller names none."""
    trainer: str | None = None
    """``ART_TRAINER``: name of the trainer where the caller names none."""
    store: str | None = None
    """``ART_STORE``: name or URL of the checkpoint store where the caller names none."""
    publisher: str | None = None
    """``ART_PUBLISHER``: name of the publisher where the caller names none; several with commas between them."""
    cache: Path = Path("~/.cache/art")
    """``ART_CACHE``: where converted models and managed environments live."""
    cuda_visible_devices: str | None = None
    """``CUDA_VISIBLE_DEVICES``: the GPUs that a process may use; shown by ``art doctor`` and never changed."""
    debug: bool = False
    """``ART_DEBUG``: set to anything, the command line shows the traceback of an error of ours too."""

    @classmethod
    def read(cls) -> Self:
        """Read the process's environment."""
        get = os.environ.get
        return cls(
            engine=get("ART_ENGINE") or None,
            trainer=get("ART_TRAINER") or None,
            store=get("ART_STORE") or None,
            publisher=get("ART_PUBLISHER") or None,
            cache=Path(get("ART_CACHE") or "~/.cache/art").expanduser(),
            cuda_visible_devices=get("CUDA_VISIBLE_DEVICES"),
            debug=bool(get("ART_DEBUG")),
        )


OWNER_FDS = "ART_OWNER_FDS"
"""Set by `art_core.process` for the processes that it launches, and for no one else: two file descriptors."""


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process; this process's own is not changed.

    Args:
        added: Variables to add or replace.
    """
    return {**os.environ, **added}


def take_owner_fds() -> tuple[int, int]:
    """The lifeline and the ready pipe that the owner passed; taken once, so that no grandchild sees them.

    Raises:
        ConfigError: This process was not launched by `art_core.process`.
    """
    value = os.environ.pop(OWNER_FDS, None)
    if value is None:
        raise ConfigError(f"{OWNER_FDS} is not set: this process has no owner; start it by art_core.process.Child")
    lifeline_fd, ready_fd = value.split(",")
    return int(lifeline_fd), int(ready_fd)


@dataclass(frozen=True)
class Timeouts:
    """Every time-out of ART in one table; seconds, but for the one count."""

    engine_start_s: float = 600.0
    """From launching the engine's process until it answers."""
    engine_stop_s: float = 10.0
    """From asking the engine to stop until it is killed."""
    health_s: float = 0.5
    """Between two looks at whether the engine lives: so soon a dead one is noticed, at a few milliseconds a look."""
    engine_silence_s: float = 60.0
    """An engine that lives but has not answered a look for so long counts as dead. Far above a busy engine's pauses:
    being started again cuts every request."""
    engine_restarts: int = 3
    """How often a dead engine is started again within `engine_restart_window_s`. One that goes on dying has a cause
    that a new start does not mend (memory, driver, a request that kills it), and a program that waits should hear it.
    """
    engine_restart_window_s: float = 600.0
    """See `engine_restarts`. The time that starting takes does not count, so that a slow engine is judged alike."""
    trainer_start_s: float = 600.0
    """From launching the trainer's process until the base model is loaded."""
    trainer_stop_s: float = 10.0
    """From asking the trainer to stop until it is killed."""
    trainer_cancel_s: float = 60.0
    """From cancelling a trainer's call until its process is killed; it ends at its next microbatch."""
    step_s: float = 3600.0
    """One training step."""
    save_s: float = 600.0
    """Writing the adapter and optimizer files."""
    load_adapter_s: float = 60.0
    """Loading one adapter into the engine."""
    score_s: float = 120.0
    """Scoring the probe."""
    slot_s: float = 600.0
    """A publication waiting for a free adapter slot."""
    request_s: float = 1200.0
    """One completion, from the gateway's side."""
    store_wait_s: float = 600.0
    """Waiting for a remote store: until it holds a step (``durable="remote"``), or until no more steps wait to be
    copied to it than may."""
    store_close_s: float = 30.0
    """At close, finishing the copies to a remote store; the next start goes on with those that are left."""
    connect_s: float = 5.0
    """Connecting to a process of ours on this machine."""
    interpreter_query_s: float = 60.0
    """Asking an interpreter which version it is."""
    library_import_s: float = 600.0
    """``art env check`` importing a library: large ones take a minute or two on a busy machine."""
    device_query_s: float = 10.0
    """Asking the GPU driver's own command which GPUs there are."""


class PartOptions(BaseModel):
    """Base of the options model that every part has; unknown keys are refused with the nearest known one.

    A subclass sets ``part`` to the name of the plugin that it configures, so that an instance of it can be
    given wherever that name can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    part: ClassVar[str]
    pass_through: ClassVar[str | None] = None
    """Name of the option that takes arguments of the library below, by the library's own names; None: there is none."""

    @property
    def hosted(self) -> bool:
        """Whether the part's library must be installed here, in this interpreter or a managed environment."""
        return True

    @classmethod
    def parse(cls, values: dict[str, Any], besides: Collection[str] = ()) -> Self:
        """Build the options from plain values.

        Args:
            values: Option name to value.
            besides: Names that may stand in the same place and are no options of the part; only suggested.

        Raises:
            ConfigError: A key is unknown (nearest one named) or a value out of range.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"{cls.part!r} has no option {key!r}; {nearest(key, {*cls.model_fields, *besides})}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{cls.part!r} option {where!r} is {first['input']!r}: {first['msg']}") from error


class HostedOptions(PartOptions):
    """Options of a part that runs in a process of its own, whose interpreter may be another one."""

    python: str | None = None
    """Interpreter to run it in, a path or a command; None: this one where its library fits, else its managed
    environment (``art env``)."""

    @property
    def hosted(self) -> bool:
        """Not where an interpreter is named: whoever names it has looked to that."""
        return self.python is None

    @field_validator("python")
    @classmethod
    def _executable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = shutil.which(Path(value).expanduser())
        if found is None:
            raise ValueError("there is no such command; give the path of an interpreter")
        return str(Path(found).absolute())


@dataclass(frozen=True)
class LoRAConfig:
    """The adapter's shape. Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685), section 4.1."""

    rank: int = 8
    """r: inner dimension of the update B·A."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    target_modules: Sequence[str] | None = None
    """Names of the linear modules to adapt; None: every linear module of the decoder layers."""
    random_state: int = 3407
    """Seed of A's initialisation (B starts at zero, so step 0 is the base model)."""

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and 1 <= self.rank <= 512):
            raise ConfigError(f"LoRA rank is {self.rank!r}; allowed: a whole number from 1 to 512")
        if not self.alpha > 0:
            raise ConfigError(f"LoRA alpha is {self.alpha!r}; allowed: above 0")
        if self.target_modules is not None and not list(self.target_modules):
            raise ConfigError("LoRA target_modules is empty; name at least one module, or leave it out for all")
